"""A simulated CUDA device: tensors that say "cuda:0" and compute on the CPU.

    python -m pytest -p tests.cuda_simulation.plugin tests/gpu

The tests of `tests/gpu` then run on a machine without a GPU. It needs a torch without CUDA and a
C++ compiler. `test_cuda_simulation.py` does the same in a subprocess.

The simulation computes real numbers, so a run can be compared with one on the CPU. Tensors of both
devices in one operation raise an error, as on CUDA. Each time the CPU would wait for the GPU, the
simulation notes the lines of code that asked for it.

It says nothing about speed, memory, streams, several GPUs, or the kernels and rounding of a real
GPU. torch.compile does not run on it.

`runtime.cpp` and `library.py` make torch believe in the device before it is imported. `tensors.py`
has the tensors and their operations, `waits.py` the notes, and `device.py` replaces what
`torch.cuda` would ask a driver for.
"""
