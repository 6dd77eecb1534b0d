"""The training loop's steps in TensorFlow: same batches, loss, schedule and update rules as torch.

The update rules are written out, because those of Keras differ from torch's: its momentum includes
the learning rate, so that a schedule gives other steps, and its Adam adds epsilon elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
from numpy.typing import NDArray
from torch import Tensor

from featkit.backbones.engines.tensorflow import tensorflow_device
from featkit.backbones.keras_modules import build_resnet, load_state, tensors, to_keras, to_torch
from featkit.backbones.resnet import Architecture
from featkit.errors import SpecError
from featkit.training.data import TrainingBatch
from featkit.training.loop import EpochLoop, LabelLoss, TrainingTask
from featkit.training.network import WHOLE, network_blocks, trainable_state
from featkit.training.optim import parameter_rates

_MOMENTUM = 0.9
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
"""Of AdamW, torch's defaults."""

_CLIP_EPSILON = 1e-6
"""Added to the norm by ``torch.nn.utils.clip_grad_norm_``."""

_BODY = "body.network."


class KerasClassifier:
    """The trainable layers of a network and a linear classifier, in Keras.

    Attributes:
        variables: every variable by its name in ``TrainableClassifier``.
    """

    def __init__(self, task: TrainingTask, architecture: Architecture) -> None:
        body = task.model.body
        self.shape = None if body.start == WHOLE else body.shape
        only_classifier = body.start != WHOLE and body.start >= len(network_blocks(body.network))
        classes, width = task.model.fc.weight.shape
        self._body: keras.Model | None = None
        self._fc = keras.layers.Dense(classes, name="fc")
        self._fc.build((None, width))
        self.variables: dict[str, Any] = {}
        if not only_classifier:
            shape = (None, None, 3) if self.shape is None else (*self.shape[1:], self.shape[0])
            self._body = build_resnet(architecture, start=body.start, shape=shape)
            load_state(self._body, body.network.state_dict(), name=architecture.network)
            for name, variable, _ in tensors(self._body):
                self.variables[_BODY + name] = variable
        self.variables |= {"fc.weight": self._fc.kernel, "fc.bias": self._fc.bias}
        self.load(trainable_state(task.model))

    def inputs(self, inputs: Tensor) -> NDArray[np.floating]:
        """Return inputs of torch, images or flattened activations, with the channels last."""
        values: NDArray[np.floating] = inputs.numpy()
        if self._body is None:
            return values
        if self.shape is not None:
            values = values.reshape(-1, *self.shape)
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1))

    def __call__(self, inputs: Any, *, training: bool) -> Any:
        """Return logits ``(b, k)``."""
        embeddings = inputs if self._body is None else self._body(inputs, training=training)
        return self._fc(embeddings)

    def load(self, state: dict[str, Tensor]) -> None:
        """Load the tensors of ``state``."""
        for name, variable in self.variables.items():
            variable.assign(to_keras(state[name].detach().cpu().numpy()))

    def state(self) -> dict[str, Tensor]:
        """Return all variables as tensors of torch."""
        state = {}
        for name, variable in self.variables.items():
            value = to_torch(variable.numpy())
            if name.endswith("num_batches_tracked"):
                value = value.astype(np.int64)
            state[name] = torch.tensor(value)
        return state


class KerasLoop(EpochLoop):
    """The state of a training in TensorFlow."""

    def __init__(self, task: TrainingTask, architecture: Architecture) -> None:
        _check(task)
        super().__init__(task, "cpu")
        self._type = task.model.fc.weight.detach().numpy().dtype  # float64 in tests only
        self._place = tensorflow_device(task.execution.compute.device)
        with tf.device(self._place):
            self.model = KerasClassifier(task, architecture)
            self.averaged_model = KerasClassifier(task, architecture) if self.config.ema else None
            self._rate = tf.Variable(0.0, trainable=False, dtype=self._type)
            self._set_up_optimiser()
        self._train = tf.function(self._train_on_batch, reduce_retracing=True)
        evaluated = self.averaged_model or self.model
        self._evaluate = tf.function(
            lambda inputs: evaluated(inputs, training=False), reduce_retracing=True
        )
        self._offset: float | NDArray[Any] = 0.0
        assert isinstance(task.loss, LabelLoss)  # distillation refuses networks of Keras
        criterion = task.loss.criterion
        # Its tensors are on torch's device, the batches are on the CPU.
        weight = None if criterion.weight is None else criterion.weight.cpu()
        self._criterion = replace(criterion, weight=weight)
        if criterion.offset is not None:
            self._offset = criterion.offset.cpu().numpy()

    def _set_up_optimiser(self) -> None:
        """Create the moments of each trained variable."""
        self._rates = parameter_rates(self.task.model, self.config)
        self._trained = list(self._rates)
        self._steps = tf.Variable(0.0, trainable=False, dtype=self._type)
        count = 2 if self.config.optimiser == "adamw" else 1
        self._moments: dict[str, list[tf.Variable]] = {}
        for name in self._trained:
            zeros = np.zeros(self.model.variables[name].shape, self._type)
            self._moments[name] = [tf.Variable(zeros, trainable=False) for _ in range(count)]

    def start_epoch(self) -> None:
        """Do nothing: each call of the network says whether it is in training."""

    def end_epoch(self) -> None:
        """Do nothing: there is one process."""

    def step_rate(self, factor: float) -> None:
        """Set the fraction of the peak learning rates."""
        self._rate.assign(factor)

    def train_step(
        self, inputs: Tensor, labels: Tensor, mixed_labels: Tensor, batch: TrainingBatch
    ) -> tuple[Tensor, Tensor]:
        """Run the forward and the backward pass, and one step of the optimiser."""
        classes = int(self.task.model.fc.out_features)
        coefficients = self._criterion.coefficients(mixed_labels, classes)
        decay = self.average_decay if self.averaged_model else 0.0
        with tf.device(self._place):
            loss, logits = self._train(
                tf.constant(self.model.inputs(inputs)),
                tf.constant(coefficients.numpy(), self._type),
                tf.constant(decay, self._type),
            )
        return torch.tensor(loss.numpy()), torch.tensor(logits.numpy())

    def _train_on_batch(self, inputs: Any, coefficients: Any, decay: Any) -> tuple[Any, Any]:
        loss, logits, gradients = self.gradients(inputs, coefficients)
        # A step of a loss that is not finite would make the weights so, too.
        if tf.math.is_finite(loss):
            self._apply(gradients)
            self._update_average(decay)
        return loss, logits

    def gradients(self, inputs: Any, coefficients: Any) -> tuple[Any, Any, list[Any]]:
        """Return the loss, the logits and the gradients of the trained variables."""
        variables = [self.model.variables[name].value for name in self._trained]
        with tf.GradientTape() as tape:
            logits = self.model(inputs, training=not self.config.frozen_norms)
            log_probabilities = tf.nn.log_softmax(logits + self._offset)
            loss = -tf.reduce_sum(coefficients * log_probabilities)
        return loss, logits, tape.gradient(loss, variables)

    def _apply(self, gradients: list[Any]) -> None:
        if self.config.clip:
            norm = tf.linalg.global_norm(gradients)
            scale = tf.minimum(self.config.clip / (norm + _CLIP_EPSILON), 1.0)
            gradients = [gradient * scale for gradient in gradients]
        self._steps.assign_add(1)
        step = self._adamw_step if self.config.optimiser == "adamw" else self._sgd_step
        for name, gradient in zip(self._trained, gradients, strict=True):
            peak, decay = self._rates[name]
            variable, moments = self.model.variables[name].value, self._moments[name]
            step(variable, gradient, self._rate * peak, decay, moments)

    def _sgd_step(
        self, weight: Any, gradient: Any, rate: Any, decay: float, moments: list[Any]
    ) -> None:
        """Apply Nesterov momentum as ``torch.optim.SGD`` does."""
        gradient = gradient + decay * weight
        momentum = moments[0].assign(_MOMENTUM * moments[0] + gradient)
        weight.assign_sub(rate * (gradient + _MOMENTUM * momentum))

    def _adamw_step(
        self, weight: Any, gradient: Any, rate: Any, decay: float, moments: list[Any]
    ) -> None:
        """Apply AdamW as ``torch.optim.AdamW`` does (Loshchilov and Hutter 2019)."""
        first = moments[0].assign(_BETA1 * moments[0] + (1 - _BETA1) * gradient)
        second = moments[1].assign(_BETA2 * moments[1] + (1 - _BETA2) * gradient**2)
        root = tf.sqrt(second) / tf.sqrt(1 - _BETA2**self._steps) + _EPSILON
        weight.assign(weight * (1 - rate * decay) - rate / (1 - _BETA1**self._steps) * first / root)

    def _update_average(self, decay: Any) -> None:
        """Move the averaged weights towards the current ones; BatchNorm statistics are copied."""
        if self.averaged_model is None:
            return
        for name, averaged in self.averaged_model.variables.items():
            current = self.model.variables[name].value
            if name in self._trained:
                averaged.value.assign_add((1 - decay) * (current - averaged.value))
            else:
                averaged.value.assign(current)

    def logits(self, inputs: Tensor) -> Tensor:
        """Run the evaluated model."""
        with tf.device(self._place):
            return torch.tensor(self._evaluate(tf.constant(self.model.inputs(inputs))).numpy())

    def state(self, *, evaluated: bool = False) -> dict[str, Tensor]:
        """Return the variables as tensors of torch, by torch's names."""
        return (self.averaged_model or self.model if evaluated else self.model).state()

    def save_state(self) -> dict[str, Any]:
        """Return the state of the optimiser."""
        moments = {}
        for name, variables in self._moments.items():
            moments[name] = [torch.tensor(variable.numpy()) for variable in variables]
        return {"optimiser": {"steps": float(self._steps.numpy()), "moments": moments}}

    def restore_state(self, content: dict[str, Any]) -> None:
        """Restore the models and the optimiser."""
        self.model.load(content["model"])
        if self.averaged_model is not None and content["average"]:
            self.averaged_model.load(content["average"])
        self._steps.assign(content["optimiser"]["steps"])
        moments = content["optimiser"]["moments"]
        for name, variables in self._moments.items():
            for variable, value in zip(variables, moments[name], strict=True):
                variable.assign(value.numpy())


def _check(task: TrainingTask) -> None:
    """Raise SpecError for what cannot be trained in TensorFlow."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise SpecError(
            f"training needs the TensorFlow back end, and KERAS_BACKEND is {backend}: unset it"
        )
    if task.execution.group.size > 1:
        raise SpecError("networks of Keras are trained in one process: start it without torchrun")
    if task.config.precision != "fp32":
        raise SpecError("networks of Keras are trained in float32: use --precision fp32")
