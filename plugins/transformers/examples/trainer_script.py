"""A plain script with Hugging Face's Trainer; it knows nothing of the doctor.

    python trainer_script.py
    doctor run trainer_script.py    # the same output, then the report
"""
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0))
tokens = (torch.arange(128)[:, None] * 7 + torch.arange(12)) % 50
data = [{"input_ids": row, "labels": row} for row in tokens]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(output_dir=folder, per_device_train_batch_size=8, num_train_epochs=1, learning_rate=3e-3, logging_steps=4, report_to=[],
                                  save_strategy="no", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
print("losses", [row["loss"] for row in trainer.state.log_history if "loss" in row])
print("weights", sum(p.double().abs().sum().item() for p in model.parameters()))
