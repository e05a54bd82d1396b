"""``ShoalForCausalLM``: a bundle that transformers' ``generate`` and pipelines can use.

B rows   T columns   W vocab_size
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from optimum.modeling_base import OptimizedModel
from torch import Tensor
from transformers import (
    AutoConfig,
    Cache,
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    StoppingCriteriaList,
)
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shoal.export.optimum.cache_name import CACHE, take_cache
from shoal.export.optimum.context_cache import layer_in
from shoal.export.optimum.forward_inputs import (
    check_ids,
    check_labels,
    check_options,
    check_positions,
    real_columns,
)
from shoal.export.optimum.full_context import FullContext
from shoal.export.optimum.kept_logits import first_kept, select_logits
from shoal.export.pipeline import export_bundle
from shoal.export.writing.folder import replaced_folder
from shoal.graphs.cache_types import CacheType
from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.errors import InputError
from shoal.runtime import Model, open_bundle
from shoal.runtime.engine.session import Kernels

_ABOUT_THE_FILES = ("model_type", "quantization_config", "auto_map", "torch_dtype", "dtype")
"""Keys of config.json that say how the checkpoint was stored, not what the model is."""


class ShoalForCausalLM(OptimizedModel, GenerationMixin):  # type: ignore[misc]
    """A bundle with the interface of transformers' causal language models, on the CPU.

    ``generate`` does greedy decoding, sampling and beam search, on batches padded on the left.
    Rows are computed one after another, each in a latent cache of its own.

    Args:
        model: an opened bundle.

    Attributes:
        model: the opened bundle.
        config: the checkpoint's config.json as transformers reads it.
        generation_config: the checkpoint's, if the bundle has one.
    """

    main_input_name = "input_ids"
    input_modalities = ("text",)
    output_modalities = ("text",)
    _is_stateful = True  # transformers' word for: no assisted generation

    def __init__(self, model: Model) -> None:
        # Pipelines look for the class by its name among those of transformers.
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("shoal", type(self).__name__)
        super().__init__(model, _config_of(model))
        self.generation_config = _generation_config_of(model, self.config)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        export: bool = False,
        weights: str = "int8",
        block_size: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        kernels: Kernels = "auto",
        threads: int | None = None,
        cache: CacheType = "float32",
        max_context: int | None = None,
        max_memory: int | None = None,
    ) -> ShoalForCausalLM:
        """Open a bundle, or export a checkpoint first.

        Args:
            model_id: a bundle folder; with ``export`` a Hugging Face folder (config.json and
                *.safetensors), a .gguf file, or ORG/NAME on the Hugging Face Hub.
            export: whether to export, to a temporary folder that is deleted with the model.
            weights: as in ``export_bundle``.
            block_size: as in ``export_bundle``.
            revision: of a checkpoint on the hub.
            token: for the hub.
            kernels: as in ``open_bundle``.
            threads: as in ``open_bundle``.
            cache: as in ``open_bundle``.
            max_context: as in ``open_bundle``.
            max_memory: as in ``open_bundle``.

        Raises:
            ShoalError: see ``open_bundle`` and ``export_bundle``.
        """
        opened = functools.partial(
            open_bundle,
            kernels=kernels,
            threads=threads,
            cache=cache,
            max_context=max_context,
            max_memory=max_memory,
        )
        if not export:
            return cls(opened(model_id))
        folder = Path(tempfile.mkdtemp(prefix="shoal-"))
        try:
            bundle = folder / "bundle"
            export_bundle(
                model_id,
                bundle,
                weights=weights,
                block_size=block_size,
                fidelity=False,
                revision=revision,
                token=token,
            )
            model = cls(opened(bundle))
        except BaseException:
            shutil.rmtree(folder)
            raise
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        *,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Read a batch of tokens.

        Args:
            input_ids: int64 [B,T].
            attention_mask: [B,S], 0 where there is padding, over the columns read before and now;
                None for no padding.
            position_ids: [B,T], which must count the tokens of each row; None for that.
            cache: what the call before returned, or an empty ``DynamicCache``; columns are read
                after those in it, and it holds them afterwards.
            past_key_values: ``cache`` as transformers called it before 5.24.
            labels: int64 [B,T], the token of each column; -100 is left out of the loss.
            use_cache: whether to return the cache.
            logits_to_keep: columns at the end to compute logits for, 0 for all; or columns, int64
                [n] or [B,n]; or which, bool [B,T].
            return_dict: whether to return an object, else a tuple; None as the config says.
            options: what else transformers may hand to a model or its loss; makes no difference to
                this one.

        Returns:
            Logits float32 [B,T,W] (or fewer columns), zeros at padding; the cache; with labels the
            loss, the mean in nats of each token after those before it.

        Raises:
            InputError: ids, a mask, positions, labels or a cache that do not fit, or an option that
                a bundle does not have.
            RuntimeFailure: onnxruntime or memory failed.
        """
        check_options(options)
        given = take_cache({"cache": cache, "past_key_values": past_key_values})
        cache, layer = layer_in(given, self.model)
        check_ids(input_ids, layer.num_rows)
        layer.start(len(input_ids))
        shape, num_new = input_ids.shape, input_ids.shape[1]
        real_BS = real_columns(attention_mask, layer.real_BS, shape)
        real_BT = real_BS[:, -num_new:]
        check_positions(position_ids, real_BS, num_new)
        first = first_kept(logits_to_keep, shape)
        if labels is not None:
            check_labels(labels, real_BT, self.model.manifest.model.vocab_size, options)
            first = 0  # the loss is that of all columns
        logits = layer.read(input_ids, real_BT, num_new - first)
        output = CausalLMOutputWithPast(
            loss=None if labels is None else _loss(logits, labels, **options),
            logits=select_logits(logits_to_keep, logits, first),
            **{CACHE: None if use_cache is False else cache},
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        *others: Any,
        **options: Any,
    ) -> Any:
        """Transformers' ``generate``, which ends with a warning where a context is full.

        Args:
            inputs: the prompts, int64 [B,T], padded on the left.
            generation_config: as in transformers.
            logits_processor: as in transformers.
            stopping_criteria: as in transformers.
            others: what else transformers takes.
            options: what else transformers takes.
        """
        ids = inputs if inputs is not None else options.get("input_ids")
        if ids is not None:
            check_ids(ids, None)
        is_full = FullContext(self.model.max_context, ids, options.get("attention_mask"))
        if (cache := take_cache(options)) is not None:
            options[CACHE] = cache
        criteria = StoppingCriteriaList([*(stopping_criteria or ()), is_full])
        return super().generate(
            inputs, generation_config, logits_processor, criteria, *others, **options
        )

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the logits."""
        return torch.float32

    def to(self, device: str | torch.device) -> ShoalForCausalLM:
        """Stay on the CPU.

        Raises:
            InputError: another device was asked for.
        """
        if torch.device(device).type != "cpu":
            raise InputError(f"device: bundles run on the CPU, found {device}; leave it out")
        return self

    def eval(self) -> ShoalForCausalLM:
        """The model itself: it cannot be trained."""
        return self

    @classmethod
    def can_generate(cls) -> bool:
        """Whether ``generate`` can be used: yes."""
        return True

    @classmethod
    def is_remote_code(cls) -> bool:
        """Whether this is code from the hub: no."""
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        """Implementations of experts that transformers could switch between: none."""
        return {}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _save_config(self, save_directory: str | Path) -> None:
        """The manifest holds it already."""

    def _save_pretrained(self, save_directory: str | Path) -> None:
        bundle = self.model.bundle.folder
        with replaced_folder(Path(save_directory), force=True) as work:
            for name in (*self.model.manifest.files, MANIFEST_FILE):
                shutil.copyfile(bundle / name, work / name)


def _config_of(model: Model) -> PretrainedConfig:
    model_type = model.config["model_type"]
    values = {key: value for key, value in model.config.items() if key not in _ABOUT_THE_FILES}
    if model_type in CONFIG_MAPPING:
        return AutoConfig.for_model(model_type, **values)
    config = PretrainedConfig(**values)
    config.model_type = model_type
    return config


def _generation_config_of(model: Model, config: PretrainedConfig) -> GenerationConfig:
    if "generation_config.json" in model.manifest.files:
        generation_config = GenerationConfig.from_pretrained(str(model.bundle.folder))
    else:
        generation_config = GenerationConfig.from_model_config(config)
        generation_config.eos_token_id = list(model.manifest.model.eos_token_ids)
    if generation_config.eos_token_id == []:  # transformers looks for a token in an empty list
        generation_config.eos_token_id = None
    return generation_config


def _loss(logits_BTW: Tensor, labels_BT: Tensor, **options: Any) -> Tensor:
    loss: Tensor = ForCausalLMLoss(logits_BTW, labels_BT, logits_BTW.shape[-1], **options)
    return loss
