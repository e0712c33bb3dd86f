extern crate std;
use super::*;
use alloc::string::{String, ToString};
use proptest::prelude::*;
use std::vec;
use units::{CpuId, NodeId};

const TWO_VMS: &str = r#"
[host]
mode = "dry-run"
sample_ms = 50

[[vm]]
name = "far"
cpus = 2
memory = "256M"
kernel = "guests/vmlinuz"
initrd = "guests/initrd.gz"
append = "console=ttyS0 quiet"
memory_nodes = [{ node = 3, size = "192M" }, { node = 1, size = "64M" }]
start_node = 0
cpu_affinity = { nodes = [0, 3] }
priority = "high"
cap = 150

[[vm]]
name = "near"
cpus = 1
memory = "1G"
kernel = "vmlinuz"
memory_nodes = [2]
cpu_affinity = { cpus = [0, 1] }
weight = 512
mode = "off"
vnuma = true
boot = "multiboot"
test_devices = true
"#;

fn errors(text: &str) -> Vec<String> {
    parse(text)
        .expect_err("the configuration was accepted")
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The single complaint about a VM whose table is right but for `line`.
fn vm_error(line: &str) -> String {
    let key = line.split('=').next().unwrap_or("").trim();
    let mut text = String::from("[[vm]]\n");
    for usual in [
        "name = \"a\"",
        "cpus = 1",
        "memory = \"64M\"",
        "kernel = \"k\"",
    ] {
        if usual.split(' ').next() != Some(key) {
            text.push_str(usual);
            text.push('\n');
        }
    }
    text.push_str(line);
    let found = errors(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap_or_default()
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = parse("").expect("empty");
    assert_eq!(config, HostConfig::default());
    assert_eq!(
        (
            config.host.quantum_ms,
            config.host.plan_ms,
            config.host.poweroff
        ),
        (10, 1000, true)
    );
}

#[test]
fn every_key_arrives_where_it_belongs() {
    let config = parse(TWO_VMS).expect("valid");
    assert_eq!(config.host.mode, Mode::DryRun);
    assert_eq!(config.host.sample_ms, 50);
    assert!(!config.host.share_cores, "VMs share no core unasked");
    let few = parse("[host]\ncounters = 2").expect("valid");
    assert!(few.host.counters == 2 && parse(&few.to_string()) == Ok(few));
    assert!(parse("[host]\ncounters = 9").is_err());
    let every = parse("[host]\nroots = \"every\"").expect("valid");
    assert!(every.host.roots == Roots::Every && parse(&every.to_string()) == Ok(every));
    assert!(parse("[host]\nroots = \"two\"").is_err());
    let frozen = parse("[host]\nadapt = false").expect("valid");
    assert!(config.host.adapt && !frozen.host.adapt && parse(&frozen.to_string()) == Ok(frozen));
    let blind = parse("[host]\nlooks = 0").expect("valid");
    assert!(
        (config.host.looks, blind.host.looks) == (1000, 0)
            && parse(&blind.to_string()) == Ok(blind)
    );
    assert!(parse("[host]\nlooks = 10001").is_err());
    let shared = parse("[host]\nshare_cores = true").expect("valid");
    assert!(shared.host.share_cores && parse(&shared.to_string()) == Ok(shared));
    let [far, near] = &config.vms[..] else {
        panic!("two VMs")
    };
    assert_eq!(
        (far.name.as_str(), far.cpus, far.memory_bytes),
        ("far", 2, 256 << 20)
    );
    assert_eq!(
        (far.kernel.as_str(), far.initrd.as_deref()),
        ("guests/vmlinuz", Some("guests/initrd.gz"))
    );
    assert_eq!(far.append, "console=ttyS0 quiet");
    assert_eq!(
        far.memory_nodes,
        vec![
            NodeShare {
                node: NodeId(3),
                bytes: 192 << 20
            },
            NodeShare {
                node: NodeId(1),
                bytes: 64 << 20
            }
        ]
    );
    assert_eq!(far.start_node, Some(NodeId(0)));
    assert_eq!(far.affinity, Affinity::Nodes(vec![NodeId(0), NodeId(3)]));
    assert_eq!(
        (far.priority, far.weight, far.cap_percent),
        (Priority::High, 256, 150)
    );
    assert_eq!(far.mode_on(&config.host), Mode::DryRun);
    assert_eq!((far.boot, far.test_devices), (BootProtocol::Linux, false));
    assert_eq!(
        (near.boot, near.test_devices),
        (BootProtocol::Multiboot, true)
    );
    assert_eq!(
        near.memory_nodes,
        vec![NodeShare {
            node: NodeId(2),
            bytes: 1 << 30
        }]
    );
    assert_eq!(near.affinity, Affinity::Cpus(vec![CpuId(0), CpuId(1)]));
    assert_eq!((near.weight, near.vnuma), (512, true));
    assert_eq!(near.mode_on(&config.host), Mode::Off);
}

#[test]
fn what_is_written_reads_back_the_same() {
    let mut config = parse(TWO_VMS).expect("valid");
    config.vms[0].append = "quote=\"x\" back\\slash tab\t \u{7f} é".into();
    assert_eq!(parse(&config.to_toml()).expect("written by us"), config);
}

#[test]
fn shares_without_a_size_divide_the_rest() {
    let text = "[[vm]]\nname='a'\ncpus=1\nmemory='10M'\nkernel='k'\nmemory_nodes=[2, {node=5, size='4M'}, 0]";
    let config = parse(text).expect("valid");
    let shares: Vec<_> = config.vms[0]
        .memory_nodes
        .iter()
        .map(|s| (s.node.0, s.bytes >> 20))
        .collect();
    assert_eq!(shares, [(2, 4), (5, 4), (0, 2)]);
}

#[test]
fn an_unknown_key_names_place_and_neighbour() {
    assert_eq!(
        errors("[host]\n  quantum_sm = 10\n"),
        ["line 2, column 3: unknown key `quantum_sm` in [host]; did you mean `quantum_ms`?"]
    );
    assert_eq!(
        errors("[[vms]]\nname = \"a\""),
        ["line 1, column 3: unknown key `vms` in the top level; did you mean `vm`?"]
    );
    assert!(
        vm_error("wieght = 3")
            .ends_with("line 6, column 1: unknown key `wieght` in [[vm]]; did you mean `weight`?")
    );
    assert!(vm_error("flavour = 3").contains("the known keys are `name`, `cpus`, `memory`"));
}

#[test]
fn all_mistakes_are_reported_in_order_of_lines() {
    let found = errors("[host]\nlog = \"wran\"\nplan_ms = true\n[[vm]]\nname = \"A\"\ncpus = 65\n");
    assert_eq!(found.len(), 6, "{found:#?}");
    assert!(
        found[0].starts_with("line 2, column 7: `log` must be one of `error`"),
        "{}",
        found[0]
    );
    assert!(
        found[0].ends_with("but it is \"wran\". Did you mean \"warn\"?"),
        "{}",
        found[0]
    );
    assert_eq!(
        found[1],
        "line 3, column 11: `plan_ms` must be a whole number from 10 to 600000, but it is true or false."
    );
    assert!(
        found[2].starts_with("line 4, column 1: [[vm]] has no `memory`"),
        "{}",
        found[2]
    );
    assert!(
        found[3].starts_with("line 4, column 1: [[vm]] has no `kernel`"),
        "{}",
        found[3]
    );
    assert!(
        found[4].starts_with("line 5, column 8: `name` must be 1 to 16"),
        "{}",
        found[4]
    );
    assert_eq!(
        found[5],
        "line 6, column 8: `cpus` must be a whole number from 1 to 64, but it is 65."
    );
}

#[test]
fn a_syntax_error_has_its_place() {
    let found = errors("[host]\nmode = \n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("line 2, column "), "{found:?}");
    assert!(found[0].contains("this is not valid TOML"), "{found:?}");
    assert!(errors("[host]\nlog=\"info\"\nlog=\"info\"\n")[0].starts_with("line 3, column 1: "));
}

#[test]
fn each_value_is_held_to_its_rule() {
    for (line, sentence) in [
        (
            "cpus = 0",
            "`cpus` must be a whole number from 1 to 64, but it is 0.",
        ),
        ("cpus = -1", "but it is -1."),
        ("cpus = \"2\"", "but it is a string."),
        (
            "memory = \"1M\"",
            "`memory` must be a multiple of 2M, but it is \"1M\".",
        ),
        ("memory = \"0G\"", "`memory` must not be zero"),
        (
            "memory = 64",
            "`memory` must be a string in quotes, but it is a whole number.",
        ),
        ("memory = \"lots\"", "must be a whole number with a unit"),
        ("memory = \"99999999T\"", "more than 64 bits can count"),
        ("name = \"\"", "`name` must be 1 to 16"),
        ("name = \"a-name-of-17-char\"", "`name` must be 1 to 16"),
        ("kernel = \"\"", "`kernel` must be the path of a file"),
        (
            "weight = 65536",
            "`weight` must be a whole number from 1 to 65535, but it is 65536.",
        ),
        ("priority = \"hihg\"", "Did you mean \"high\"?"),
        ("vnuma = 1", "`vnuma` must be true or false without quotes"),
        ("boot = \"multibot\"", "Did you mean \"multiboot\"?"),
        (
            "test_devices = \"yes\"",
            "`test_devices` must be true or false without quotes",
        ),
        ("start_node = 65536", "from 0 to 65535"),
        (
            "memory_nodes = 3",
            "`memory_nodes` must be a list such as [3]",
        ),
        ("memory_nodes = []", "`memory_nodes` is empty"),
        ("memory_nodes = [{ size = \"64M\" }]", "has no `node`"),
        (
            "memory_nodes = [{ node = 1, size = \"62M\" }]",
            "add up to 62M, but `memory` is \"64M\"; 2M is in no node.",
        ),
        (
            "memory_nodes = [{ node = 1, size = \"66M\" }]",
            "add up to 66M, more than `memory` = \"64M\".",
        ),
        (
            "memory_nodes = [{ node = 1, size = \"64M\" }, 2]",
            "leaves 0K for 1 entries without a size",
        ),
        (
            "memory_nodes = [{ node = 1, sise = \"64M\" }]",
            "did you mean `size`?",
        ),
        (
            "memory_nodes = [{ node = 1, size = \"16777214T\" }, { node = 1, size = \"16777214T\" }]",
            "more than 64 bits",
        ),
        ("cpu_affinity = \"all\"", "`cpu_affinity` must be \"auto\""),
        (
            "cpu_affinity = { nodes = [0], cpus = [1] }",
            "`cpu_affinity` must be \"auto\"",
        ),
        (
            "cpu_affinity = { nodes = [] }",
            "`nodes` must be a list with at least one number",
        ),
        (
            "cpu_affinity = { cpus = [1, 1] }",
            "1 stands in `cpus` twice.",
        ),
        ("append = \"a\\u0000b\"", "`append` holds a NUL"),
    ] {
        let found = vm_error(line);
        assert!(found.contains(sentence), "{line}: {found}");
    }
}

#[test]
fn rules_between_keys_hold() {
    let twice = "[[vm]]\nname='a'\ncpus=1\nmemory='2M'\nkernel='k'\n";
    let found = errors(&std::format!("{twice}{twice}"));
    assert_eq!(
        found,
        ["line 7, column 6: the name \"a\" is taken by an earlier VM; each VM needs its own."]
    );
    let found = errors(&std::format!(
        "{twice}start_node = 1\ncpu_affinity = {{ nodes = [0, 2] }}\n"
    ));
    assert_eq!(
        found,
        ["line 6, column 14: `start_node` is 1, but `cpu_affinity` does not allow that node."]
    );
    assert!(errors("[vm]\nname='a'")[0].contains("write the header as [[vm]]"));
    let many: String = (0..=MAX_VMS)
        .map(|i| std::format!("[[vm]]\nname='v{i}'\ncpus=1\nmemory='2M'\nkernel='k'\n"))
        .collect();
    assert!(errors(&many)[0].contains("at most 64"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}") {
        if let Err(found) = parse(&text) {
            prop_assert!(!found.is_empty());
        }
    }

    #[test]
    fn no_damage_makes_it_panic(cut in 0..TWO_VMS.len(), insert in "[\\[\\]{}=\"'0-9a-z,\n]{0,4}") {
        let mut text = String::from(&TWO_VMS[..cut]);
        text.push_str(&insert);
        text.push_str(TWO_VMS.get(cut + 1..).unwrap_or(""));
        if let Err(found) = parse(&text) {
            prop_assert!(!found.is_empty());
            let lines = text.lines().count() as u32;
            prop_assert!(found.iter().all(|e| e.line >= 1 && e.line <= lines + 1 && e.column >= 1));
        }
    }

    #[test]
    fn sizes_dealt_out_add_up(entries in proptest::collection::vec((0u16..8, proptest::option::of(1u64..16)), 1..6), rest in 0u64..64) {
        let list: Vec<String> = entries.iter().map(|(node, size)| match size {
            Some(size) => std::format!("{{node={node},size='{}M'}}", size * 2),
            None => node.to_string(),
        }).collect();
        let named: u64 = entries.iter().filter_map(|(_, size)| *size).sum();
        let memory = (named + rest).max(1) * 2;
        let text = std::format!("[[vm]]\nname='a'\ncpus=1\nmemory='{memory}M'\nkernel='k'\nmemory_nodes=[{}]", list.join(","));
        if let Ok(config) = parse(&text) {
            let sum: u64 = config.vms[0].memory_nodes.iter().map(|share| share.bytes).sum();
            prop_assert_eq!(sum, memory << 20);
            prop_assert!(config.vms[0].memory_nodes.iter().all(|share| share.bytes > 0));
        }
    }
}

#[test]
fn sabotage_is_a_list_of_known_names() {
    let config = parse("[host]\nsabotage = [\"foreign-frame\", \"leak-frame\"]").expect("known");
    assert_eq!(
        config.host.sabotage,
        [Sabotage::ForeignFrame, Sabotage::LeakFrame]
    );
    assert_eq!(parse(&config.to_toml()), Ok(config));
    assert_eq!(
        errors("[host]\nsabotage = [\"foreign-fame\"]"),
        [
            "line 2, column 13: `sabotage` knows nothing called \"foreign-fame\"; did you mean \"foreign-frame\"?"
        ]
    );
    assert_eq!(
        errors("[host]\nsabotage = \"foreign-frame\""),
        [
            "line 2, column 12: `sabotage` must be a list such as [\"foreign-frame\"], but it is a string."
        ]
    );
    assert_eq!(
        errors("[host]\nsabotage = [1]"),
        [
            "line 2, column 13: each entry of `sabotage` must be a name in quotes, but this is a whole number."
        ]
    );
}
