"""Fine-tuning, training from scratch and knowledge distillation."""
