//! The witness: a QEMU plugin that counts, from outside, whose memory a guest touches.
//!
//! Perigee claims that a VM ends up near its memory. That claim is not worth much if Perigee itself
//! counts. QEMU's software emulation sees every data access with its physical address and the CPU that makes
//! it, below any nested paging, so the count here is exact and knows nothing of the hypervisor.
//!
//! What to count: kernels touch memory too, and a hypervisor's own accesses would blur the figure. So
//! the guests' workload marks its loop with a *tag*, a long NOP with a magic displacement (`tag`), and only
//! what instructions behind the tag do, in the same translation block, is counted: by tag, by node of the
//! CPU, by node of the physical address, as a total and as a series of windows, so that the local-access
//! ratio can be seen to change over time.
//!
//! Three more things it can count, each when asked:
//!
//! * every page: exact loads and stores by page of 4 KiB, CPU and node while a *window* is open (`pages`);
//!   the guest opens and closes windows by a NOP or by a port write (`tag`);
//! * the sides: with `pages=guests` all that guests do is counted, tagged or not, and with `host=count` the
//!   instructions of the hypervisor (`host`); which side of the world switch a CPU is on is seen at the switch
//!   itself (`side`);
//! * operations: the guest marks where one ends and the next begins, and the hypervisor's instructions in between
//!   are what it cost.
//!
//! Arguments, `-plugin liblab.so,key=value,...`:
//!
//! | key | value |
//! |---|---|
//! | `out` | file for the report, required |
//! | `cpus` | node of each vCPU, `0:0:1:1`; default: vCPU i is on node i |
//! | `nodes` | MiB of each node of a q35 machine, `512:512:0:512`; gives the address map |
//! | `map` | the address map itself, `START-END@NODE;...`, hexadecimal, end not included |
//! | `window` | accesses of a tag to a window, default 200000 |
//! | `pages` | `tagged` or `guests`: whose accesses are counted by page while a window is open |
//! | `linear` | MiB of linear addresses that are counted by page beside the physical ones, default 0 |
//! | `clock` | picoseconds that each instruction takes: the machine's time is what its CPUs execute (`clock`) |
//! | `host` | `count`: the hypervisor's instructions are counted; `profile`: by address, too |
//!
//! The report is JSON ([`report::Report`]). It is written at QEMU's exit (SIGTERM included), whenever a
//! guest executes the flush marker, and about once a second while tagged code runs, each time
//! whole (a new file is renamed over the old one), so that even a killed emulator leaves one.
//!
//! # What is safe in QEMU 10.0
//! Callbacks, not inline operations: those corrupt the guest under some clocks. One host thread per vCPU
//! (`-accel tcg,thread=multi`): with a shared one QEMU bakes the index of the translating vCPU into
//! shared code, and attribution is wrong; that is noticed and reported as `shared_thread`. Instruction
//! fetches and page walks are not seen.
//!
//! Read next: `tag.rs`, then `counts.rs`, `pages.rs`, `side.rs` and `host.rs`; `abi.rs` is QEMU's side.

mod abi;
mod args;
mod clock;
mod counts;
mod hook;
mod host;
mod pages;
mod report;
mod side;
mod tag;
#[cfg(test)]
mod tests;
mod witness;
