"""The C code on emulated processors: Cortex-M4F and M7 without a system, and AArch64 under Linux."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.examples.test_policy_runner import write_sequence_policy
from tests.stages.policy_file.c_programs import STRICT, built, drawn_policy, ran
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.stages.policy_file.c_code import c_files
from thousandfold.stages.policy_file.onnx_bytes import read_model

pytestmark = pytest.mark.slow

# Returns what the self-test says, or 101 and more where a step of zeros is not one that is sent.
PROGRAM = """
#include "policy.h"

static policy_state state;

int main(void)
{
    static const float start[POLICY_CONTROL], readings[POLICY_READINGS], goal[POLICY_GOAL];
    float control[POLICY_CONTROL];
    const int row = policy_self_test();
    if (row != 0) return row;
    if (policy_reset(&state, start) != 0) return 101;
    return policy_step(&state, readings, goal, control) == POLICY_OK && state.sending ? 0 : 102;
}
"""
# A processor without a system: its vectors, its FPU switched on, and an end that the emulator hands on.
BARE = """
#include <stdint.h>

extern uint32_t stack_top, data_start, data_end, data_source;
int main(void);

static void start(void)
{
    uint32_t *to = &data_start;
    const uint32_t *from = &data_source;
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20;
    __asm volatile("dsb\\n isb");
    while (to != &data_end) *to++ = *from++;
    volatile uint32_t block[2] = {0x20026u, 0};
    block[1] = (uint32_t)main();
    register uint32_t operation __asm("r0") = 0x20u;
    register volatile uint32_t *argument __asm("r1") = block;
    __asm volatile("bkpt 0xAB" : "+r"(operation) : "r"(argument) : "memory");
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
    &stack_top, __extension__ (const void *)start
};
"""
LAYOUT = """
MEMORY { flash (rx) : ORIGIN = 0, LENGTH = 1M  ram (rwx) : ORIGIN = 0x20000000, LENGTH = 128K }
SECTIONS {
    .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) . = ALIGN(4); } > flash
    .ARM.exidx : { *(.ARM.exidx*) } > flash
    .data : { data_start = .; *(.data*) . = ALIGN(4); data_end = .; } > ram AT > flash
    data_source = LOADADDR(.data);
    .bss (NOLOAD) : { *(.bss*) *(COMMON) } > ram
    stack_top = ORIGIN(ram) + LENGTH(ram);
}
"""
POLICIES = ("network", "history")


def write_files(name: str, folder: Path) -> dict[str, str]:
    """Return the C code of a network of 4 layers, or of the policy with history, clocks and rates."""
    if name == "network":
        return c_files(drawn_policy(NetworkShape(4, 64)), Path("policy.onnx"))
    return c_files(read_model(write_sequence_policy(folder / "policy.onnx")), folder)


def required(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("board", "processor"),
    [
        ("mps2-an386", ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16")),
        ("mps2-an500", ("-mcpu=cortex-m7", "-mfpu=fpv5-sp-d16")),
    ],
    ids=["Cortex-M4F", "Cortex-M7"],
)
def test_golden_rows_on_a_processor_without_a_system(
    name: str, board: str, processor: tuple[str, ...], tmp_path: Path
) -> None:
    required("arm-none-eabi-gcc", "qemu-system-arm")
    (tmp_path / "layout.ld").write_text(LAYOUT)
    (tmp_path / "bare.c").write_text(BARE)
    flags = (
        *STRICT, *processor, "-mthumb", "-mfloat-abi=hard", "-ffunction-sections", "-fdata-sections",
        "-Wl,--gc-sections", "-nostartfiles", "--specs=nosys.specs", "-T", str(tmp_path / "layout.ld"),
        str(tmp_path / "bare.c"),
    )  # fmt: skip
    program = built(tmp_path, write_files(name, tmp_path), PROGRAM, *flags, compiler="arm-none-eabi-gcc")
    semihosting = ("-semihosting-config", "enable=on,target=native")
    machine = ("qemu-system-arm", "-M", board, "-display", "none", "-monitor", "none", "-serial", "none")
    done = ran(*machine, *semihosting, "-kernel", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", POLICIES)
def test_golden_rows_on_aarch64(name: str, tmp_path: Path) -> None:
    required("aarch64-linux-gnu-gcc", "qemu-aarch64")
    flags = (*STRICT, "-static")
    program = built(tmp_path, write_files(name, tmp_path), PROGRAM, *flags, compiler="aarch64-linux-gnu-gcc")
    done = ran("qemu-aarch64", program)
    assert done.returncode == 0, done.stderr
