//! What Perigee is compared with, written from the published rules of each.
//!
//! None of them is a copy of anybody's code, and none is complete; each follows the rules that its
//! file names, with the constants of its source, and reproduces a behaviour that was published of the
//! original (the tests of its file).

pub mod blind;
pub mod credit;
pub mod credit2;
pub mod linux;

use crate::policy::Acts;
use crate::world::World;

/// CPUs that run nothing and were not called yet.
pub(crate) fn idle_cpus<'a>(
    w: &'a World,
    current: &'a [Option<usize>],
) -> impl Iterator<Item = usize> + 'a {
    (0..w.machine.cpus.len()).filter(move |c| current[*c].is_none())
}

/// Interrupts a CPU.
pub(crate) fn kick(acts: &mut Acts, cpu: usize) {
    if !acts.kicks.contains(&cpu) {
        acts.kicks.push(cpu);
    }
}
