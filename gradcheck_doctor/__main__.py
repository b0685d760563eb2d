"""python -m gradcheck_doctor"""
from gradcheck_doctor.cli.main import main

if __name__ == "__main__":
    main()
