"""Finding and building a model and a batch for it."""
from gradcheck_doctor.targets.memory import target_of_model
from gradcheck_doctor.targets.resolve import resolve
from gradcheck_doctor.targets.target import Target

__all__ = ["Target", "resolve", "target_of_model"]
