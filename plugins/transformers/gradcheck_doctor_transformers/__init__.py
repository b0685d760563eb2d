"""gradcheck_doctor for Hugging Face's Trainer: `Trainer(..., callbacks=[DoctorTrainerCallback()])`."""
from gradcheck_doctor_transformers.callback import DoctorTrainerCallback, UnhealthyTraining

__all__ = ["DoctorTrainerCallback", "UnhealthyTraining"]
