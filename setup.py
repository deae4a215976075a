"""The compiled part of the package. setup.cfg has the rest."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "spacy_distil.engines.fused.compiled",
            ["spacy_distil/engines/fused/encoder.cpp"],
            depends=[
                f"spacy_distil/engines/fused/{name}.h" for name in ("attention", "rows", "vectors")
            ],
            extra_compile_args=["-O3", "-std=c++17", "-w", "-g0"],
            # Without a compiler the install goes on, and ONNX Runtime runs all encoders.
            optional=True,
        )
    ]
)
