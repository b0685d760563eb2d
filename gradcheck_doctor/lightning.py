"""The Lightning callback, for `lightning` and `pytorch_lightning`: `from gradcheck_doctor.lightning import DoctorCallback`."""
from gradcheck_doctor.integrations.lightning import DoctorCallback

__all__ = ["DoctorCallback"]
