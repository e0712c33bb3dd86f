//! The plugin's arguments: where CPUs and memory are.

use std::path::PathBuf;

/// Most nodes of a machine.
pub(crate) const MAX_NODES: usize = 64;
/// Physical memory of a q35 machine below 4 GiB: all of it up to the first figure, otherwise
/// as much as the second says, the rest from 4 GiB on (QEMU, hw/i386/pc_q35.c).
const Q35_LOW_MAX: u64 = 0xb000_0000;
const Q35_LOW: u64 = 0x8000_0000;
const HIGH: u64 = 1 << 32;
/// Most linear addresses that are counted by page.
const LINEAR_MAX_MIB: u64 = 64 << 10;

/// A range of physical addresses, end not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) node: usize,
}

/// Whose accesses to single pages are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Nobody's.
    #[default]
    Nobody,
    /// Those behind a tag.
    Tagged,
    /// All that guests do; the hypervisor's own are left out.
    Guests,
}

/// What the plugin was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Args {
    /// Where the report goes.
    pub(crate) out: PathBuf,
    /// Node of each vCPU.
    pub(crate) cpus: Vec<usize>,
    /// Memory, ascending and disjoint.
    pub(crate) map: Vec<Range>,
    /// Accesses to a window.
    pub(crate) window: u64,
    /// Number of nodes.
    pub(crate) nodes: usize,
    /// Which accesses are counted by page while a window is open.
    pub(crate) pages: Scope,
    /// Linear addresses below this are counted by page as well.
    pub(crate) linear_end: u64,
    /// Whether the hypervisor's instructions are counted.
    pub(crate) host: bool,
    /// Whether they are counted by address, too.
    pub(crate) profile: bool,
    /// Picoseconds that an instruction takes, if the machine's clock counts instructions.
    pub(crate) clock: Option<u32>,
}

/// Reads `key=value` arguments for a machine of `vcpus` vCPUs.
///
/// # Errors
/// A sentence that names the argument.
pub(crate) fn parse<'a>(args: impl Iterator<Item = &'a str>, vcpus: usize) -> Result<Args, String> {
    let (mut out, mut cpus, mut map, mut window) = (None, None, None, 200_000);
    let (mut pages, mut linear_end, mut host) = (Scope::Nobody, 0, None);
    let mut clock = None;
    for arg in args {
        let (key, value) = arg
            .split_once('=')
            .ok_or_else(|| format!("{arg:?} is not key=value"))?;
        match key {
            "out" => out = Some(PathBuf::from(value)),
            "cpus" => {
                cpus = Some(
                    value
                        .split(':')
                        .map(|node| number(node, "cpus"))
                        .collect::<Result<Vec<_>, _>>()?,
                )
            }
            "nodes" => {
                map = Some(q35(&value
                    .split(':')
                    .map(|mib| number(mib, "nodes"))
                    .collect::<Result<Vec<_>, _>>()?))
            }
            "map" => {
                map = Some(
                    value
                        .split(';')
                        .filter(|part| !part.is_empty())
                        .map(range)
                        .collect::<Result<Vec<_>, _>>()?,
                )
            }
            "window" => window = number(value, "window")?.max(1) as u64,
            "pages" => {
                pages = match value {
                    "tagged" => Scope::Tagged,
                    "guests" => Scope::Guests,
                    _ => return Err(format!("{value:?} in pages is neither tagged nor guests")),
                }
            }
            "linear" => linear_end = (number(value, "linear")? as u64).min(LINEAR_MAX_MIB) << 20,
            "clock" => {
                let ps = u32::try_from(number(value, "clock")?).ok();
                let ps = ps.filter(|ps| *ps > 0);
                clock = Some(ps.ok_or("clock is a number of picoseconds, and not none")?);
            }
            "host" => match value {
                "count" => host = Some(false),
                "profile" => host = Some(true),
                _ => return Err(format!("{value:?} in host is neither count nor profile")),
            },
            _ => {
                return Err(format!(
                    "{key:?} is not one of out, cpus, nodes, map, window, pages, linear, host, clock"
                ));
            }
        }
    }
    let out = out.ok_or("out=FILE is missing")?;
    let mut map = map.ok_or("nodes=MIB:MIB:.. or map=START-END@NODE;.. is missing")?;
    let cpus = cpus.unwrap_or_else(|| (0..vcpus).collect());
    if cpus.len() != vcpus {
        return Err(format!(
            "cpus names {} vCPUs, but the machine has {vcpus}",
            cpus.len()
        ));
    }
    map.sort_by_key(|range| range.start);
    if let Some(pair) = map.windows(2).find(|pair| pair[0].end > pair[1].start) {
        return Err(format!(
            "the ranges at {:#x} and {:#x} overlap",
            pair[0].start, pair[1].start
        ));
    }
    let nodes = cpus
        .iter()
        .chain(map.iter().map(|range| &range.node))
        .max()
        .map_or(1, |node| node + 1);
    if nodes > MAX_NODES {
        return Err(format!(
            "node {} is named, but {MAX_NODES} nodes are supported",
            nodes - 1
        ));
    }
    Ok(Args {
        out,
        cpus,
        map,
        window,
        nodes,
        pages,
        linear_end,
        host: host.is_some(),
        clock,
        profile: host == Some(true),
    })
}

fn number(text: &str, key: &str) -> Result<usize, String> {
    text.parse()
        .map_err(|_| format!("{text:?} in {key} is not a number"))
}

fn range(text: &str) -> Result<Range, String> {
    let wrong = || format!("{text:?} in map is not START-END@NODE in hexadecimal");
    let hex =
        |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|_| wrong());
    let (addresses, node) = text.split_once('@').ok_or_else(wrong)?;
    let (start, end) = addresses.split_once('-').ok_or_else(wrong)?;
    let range = Range {
        start: hex(start)?,
        end: hex(end)?,
        node: number(node, "map")?,
    };
    if range.start < range.end {
        Ok(range)
    } else {
        Err(wrong())
    }
}

/// Where QEMU's q35 puts the memory of its nodes: one after the other, around the hole below 4 GiB.
fn q35(mib: &[usize]) -> Vec<Range> {
    let total: u64 = mib.iter().map(|mib| (*mib as u64) << 20).sum();
    let low = if total >= Q35_LOW_MAX {
        Q35_LOW
    } else {
        Q35_LOW_MAX
    };
    let (mut map, mut at) = (Vec::new(), 0);
    for (node, mib) in mib.iter().enumerate() {
        let end = at + ((*mib as u64) << 20);
        let pieces = [
            (at.min(low), end.min(low), 0),
            (at.max(low), end.max(low), HIGH - low),
        ];
        let pieces = pieces.into_iter().filter(|(start, end, _)| start < end);
        map.extend(pieces.map(|(start, end, moved)| Range {
            start: start + moved,
            end: end + moved,
            node,
        }));
        at = end;
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_say_where_everything_is() {
        let args = parse(
            "out=/tmp/x cpus=0:1 map=20000000-40000000@1;0-0x20000000@0 window=5 pages=guests linear=3 host=count"
                .split(' '),
            2,
        )
        .expect("valid");
        assert_eq!(args.out, PathBuf::from("/tmp/x"));
        assert_eq!((args.cpus, args.window, args.nodes), (vec![0, 1], 5, 2));
        assert_eq!(
            (args.pages, args.linear_end, args.host),
            (Scope::Guests, 3 << 20, true)
        );
        assert_eq!(
            args.map[0],
            Range {
                start: 0,
                end: 0x2000_0000,
                node: 0
            }
        );
        assert_eq!(
            args.map[1],
            Range {
                start: 0x2000_0000,
                end: 0x4000_0000,
                node: 1
            }
        );
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (args, complaint) in [
            ("nodes=1", "out=FILE is missing"),
            ("out=x", "nodes=MIB"),
            (
                "out=x nodes=1 cpus=0",
                "cpus names 1 vCPUs, but the machine has 2",
            ),
            ("out=x nodes=1 cpus=0:z", "\"z\" in cpus is not a number"),
            ("out=x map=5-3@0", "\"5-3@0\" in map is not START-END@NODE"),
            ("out=x map=0-3@0;2-4@1", "the ranges at 0x0 and 0x2 overlap"),
            ("out=x nodes=1 cpus=0:64", "node 64 is named"),
            (
                "out=x pages=all",
                "\"all\" in pages is neither tagged nor guests",
            ),
            (
                "out=x clock=0",
                "clock is a number of picoseconds, and not none",
            ),
            ("out=x clock=fast", "\"fast\" in clock is not a number"),
            ("out=x host=1", "\"1\" in host is neither count nor profile"),
            ("out=x verbose", "\"verbose\" is not key=value"),
            ("out=x verbose=1", "\"verbose\" is not one of"),
        ] {
            let error = parse(args.split(' '), 2).expect_err(args);
            assert!(error.starts_with(complaint), "{args}: {error}");
        }
    }

    #[test]
    fn a_q35_machine_has_a_hole_below_4_gib() {
        let small = q35(&[512, 0, 512]);
        assert_eq!(
            small,
            [
                Range {
                    start: 0,
                    end: 512 << 20,
                    node: 0
                },
                Range {
                    start: 512 << 20,
                    end: 1 << 30,
                    node: 2
                }
            ]
        );
        let large = q35(&[1024, 2048]);
        assert_eq!(
            large,
            [
                Range {
                    start: 0,
                    end: 1 << 30,
                    node: 0
                },
                Range {
                    start: 1 << 30,
                    end: 2 << 30,
                    node: 1
                },
                Range {
                    start: 4 << 30,
                    end: 5 << 30,
                    node: 1
                }
            ]
        );
    }
}
