"""Checks of a machine and of the project on it: what is wrong, and how to fix it.

`examine` runs every check; machine.py, model.py and project.py have them. No check changes
anything, and a failure stops no other check. It imports `refllm.spin.manifest` and the layers below
`spin`. A finding's `check` is its name for programs, and stays the same from version to version.

    cpu                         what kernels are compiled for, and on how many CPUs they run
    numerics                    the revision of the rule by which numbers are computed
    kernel-cache                where compiled kernels are kept between runs, and which folder is
                                not used because another user can write to it
    ai-models-folder            .spin/ai-models is there
    misplaced-folder            models are in another folder: .spin/ai_models, ./ai-models …
    manifest, manifest-model    spin.toml can be read, and every model it names is there
    model                       a model that can be used
    lfs-pointer                 a file is a Git LFS pointer instead of the file itself
    missing-index               shards without the index, which lists the tensors of each shard
    damaged-file                truncated, or not what its name says
    unsupported-model           a whole file, of an architecture that refllm does not compute
    wrong-architecture          a BERT among the llamas, or the reverse
    architecture-level          a llama beside the folder `llama`, where newer Spins do not look
    bad-config                  hyperparameters that are missing or impossible
    bad-tokenizer               no tokenizer, or a damaged one
    not-computed                a tensor or key that refllm does not compute: loading refuses it
    unknown-key                 a key of a JSON file that no table lists: it may have a meaning
    vocabulary-sizes            tokenizer and network do not belong together
    chat-template               none; using Llama 2's chat format. Or one that no chat can use
    bug                         refllm itself failed on a model; the other models are examined
    rope-layout                 query and key rows in the other convention's order (to 1 GiB)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from refllm.doctor.finding import Finding, Level
from refllm.doctor.machine import check_cpu, check_kernel_cache, check_numerics
from refllm.doctor.model import check_models
from refllm.doctor.project import check_folders, check_manifest
from refllm.models.bundled import STAND_INS, wants_stand_ins
from refllm.spin.manifest import MANIFEST

__all__ = ["Finding", "Level", "examine"]


def examine(
    project: Path, roots: Sequence[Path], environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Yield the findings about this machine and a project, check by check.

    Args:
        project: The project's folder.
        roots: The folders of models.
        environment: The environment variables, which choose the folder of compiled kernels.

    Raises:
        InvalidInput: If REFLLM_STAND_INS is not 1 or 0.
    """
    yield check_cpu()
    yield check_numerics()
    yield from check_kernel_cache(environment)
    yield from check_folders(project)
    for root in roots:
        yield from check_models(root)
    stand_ins = STAND_INS if wants_stand_ins(environment) else {}
    yield from check_manifest(project / MANIFEST, roots, stand_ins)
