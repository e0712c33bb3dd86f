use super::*;
use crate::status::Usage;

fn wishes() -> Wishes {
    Wishes {
        vms: default_vms(&Machine::row(4, 2, 512), Emulator::Qemu),
        ..Wishes::default()
    }
}

fn refused(wishes: &Wishes) -> String {
    let error = Plan::new(wishes).expect_err("should be refused");
    assert!(error.is::<Usage>(), "not a usage error: {error:#}");
    error.to_string()
}

#[test]
fn the_ordinary_run_has_one_near_and_one_far_vm() {
    let plan = Plan::new(&wishes()).expect("valid");
    let config = config::parse(&plan.toml).expect("valid");
    let names: Vec<_> = config.vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["alpha", "beta"]);
    let beta = &config.vms[1];
    assert_eq!((beta.cpus, beta.memory_bytes), (2, 192 << 20));
    assert_eq!(beta.memory_nodes[0].node.0, 3);
    assert_eq!(beta.start_node.map(|n| n.0), Some(0));
    assert!(config.vms[0].memory_nodes.is_empty());
    assert_eq!(
        plan.guests.len(),
        2,
        "both VMs share kernel and initramfs: {:?}",
        plan.guests
    );
    assert!(plan.vms.iter().all(|vm| vm.judged == Judge::Workload));
}

#[test]
fn one_vm_is_changed_and_the_other_is_not() {
    let settings = [
        "beta:memory=256M",
        "beta:mode=off",
        "beta:cpus=1",
        "beta:memory_nodes=[1, 2]",
        "beta:cpu_affinity={ nodes = [0, 1] }",
        "beta:workload=--mib 32",
    ];
    let plan = Plan::new(&Wishes {
        vm_settings: settings.map(String::from).into(),
        ..wishes()
    })
    .expect("valid");
    let config = config::parse(&plan.toml).expect("valid");
    let (alpha, beta) = (&config.vms[0], &config.vms[1]);
    assert!(matches!(&beta.affinity, config::Affinity::Nodes(nodes) if nodes.len() == 2));
    assert_eq!(
        (beta.memory_bytes, beta.cpus, beta.memory_nodes.len()),
        (256 << 20, 1, 2)
    );
    assert_eq!(beta.mode.map(|m| m.to_string()).as_deref(), Some("off"));
    assert!(beta.append.ends_with(" -- --mib 32"), "{}", beta.append);
    assert_eq!((alpha.memory_bytes, alpha.cpus), (192 << 20, 2));
    assert!(alpha.append.contains(" -- --mib 64 "));
}

#[test]
fn a_mistyped_vm_or_key_is_answered_with_the_nearest() {
    let with = |setting: &str| {
        refused(&Wishes {
            vm_settings: vec![setting.into()],
            ..wishes()
        })
    };
    assert!(with("beat:cpus=1").contains("did you mean \"beta\"?"));
    assert!(with("beta:memroy=64M").contains("did you mean \"memory\"?"));
    assert!(with("beta:xyzzyxyzzy=1").contains("there are: name, cpus"));
    assert!(with("beta").contains("NAME:KEY=VALUE"));
    assert!(with("beta:mode=of").contains("off"));
    assert!(with("beta:cpus=0").contains("cpus"));
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    let text = refused(&Wishes {
        kernel: Some("/no/such/bzImage".into()),
        ..wishes()
    });
    assert!(
        text.contains("/no/such/bzImage") && text.contains("alpha"),
        "{text}"
    );
}

#[test]
fn own_files_are_placed_beside_each_other() {
    let folder = std::env::temp_dir().join(format!("perigee-plan-test-{}", std::process::id()));
    for sub in ["a", "b"] {
        std::fs::create_dir_all(folder.join(sub)).expect("a temporary folder");
        std::fs::write(folder.join(sub).join("my kernel"), sub).expect("a temporary file");
    }
    let file = |sub: &str| folder.join(sub).join("my kernel").display().to_string();
    let plan = Plan::new(&Wishes {
        kernel: Some(file("a")),
        initrd: Some("none".into()),
        vm_settings: vec![format!("beta:kernel={}", file("b"))],
        ..wishes()
    })
    .expect("valid");
    assert_eq!(
        plan.guests.keys().collect::<Vec<_>>(),
        ["guests/2-my_kernel", "guests/my_kernel"]
    );
    let config = config::parse(&plan.toml).expect("valid");
    assert_eq!(config.vms[1].kernel, "guests/2-my_kernel");
    assert_eq!(config.vms[1].initrd, None);
    assert!(plan.vms.iter().all(|vm| vm.judged == Judge::PowerOff));
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn a_multiboot_kernel_gets_a_machine_for_tests() {
    let folder = std::env::temp_dir().join(format!("perigee-multiboot-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let magic = 0x1BAD_B002_u32;
    let header = [magic, 0, magic.wrapping_neg()].map(u32::to_le_bytes);
    for (name, bytes) in [
        ("k.flat", header.concat()),
        ("m,1", vec![1]),
        ("m2", vec![2]),
    ] {
        std::fs::write(folder.join(name), bytes).expect("a temporary file");
    }
    let file = |name: &str| folder.join(name).display().to_string();
    let wishes = |settings: &[&str]| Wishes {
        kernel: Some(file("k.flat")),
        vm_settings: settings.iter().map(ToString::to_string).collect(),
        ..wishes()
    };
    let config = |plan: &Plan| config::parse(&plan.toml).expect("valid");

    let plan = Plan::new(&wishes(&[])).expect("valid");
    let alpha = &config(&plan).vms[0];
    assert_eq!(alpha.boot, config::BootProtocol::Multiboot);
    assert!(alpha.test_devices && alpha.initrd.is_none() && alpha.append.is_empty());
    assert_eq!(plan.guests.keys().collect::<Vec<_>>(), ["guests/k.flat"]);
    assert!(plan.vms.iter().all(|vm| vm.judged == Judge::ExitPort));

    // What a person says counts, and a list of modules is placed file by file.
    let modules = format!("alpha:initrd={} x y,{}", file("m,,1"), file("m2"));
    let plan = Plan::new(&wishes(&[
        "alpha:test_devices=false",
        "alpha:append=a,b",
        &modules,
        "beta:boot=linux",
    ]))
    .expect("valid");
    let vms = &config(&plan).vms;
    assert_eq!(vms[0].initrd.as_deref(), Some("guests/m_1 x y,guests/m2"));
    assert!(!vms[0].test_devices && vms[0].append == "a,b");
    assert_eq!(plan.vms[0].judged, Judge::PowerOff);
    assert_eq!(vms[1].boot, config::BootProtocol::Linux);
    assert!(vms[1].append.contains("console=ttyS0"));
    let missing = refused(&wishes(&["alpha:initrd=/no/such/file x,y"]));
    assert!(missing.contains("/no/such/file is not a file"), "{missing}");
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn a_configuration_file_is_checked_where_the_person_wrote_it() {
    let path =
        std::env::temp_dir().join(format!("perigee-config-test-{}.toml", std::process::id()));
    let with = |text: &str| {
        std::fs::write(&path, text).expect("a temporary file");
        Plan::new(&Wishes {
            config: Some(path.clone()),
            ..Wishes::default()
        })
    };
    let text = "[host]\nmode = \"off\"\n[[vm]]\nname = \"x\"\ncpus = 1\nmemory = \"64M\"\nkernel = \"debian-6.12\"\n";
    let plan = with(text).expect("valid");
    assert_eq!(
        plan.guests.keys().collect::<Vec<_>>(),
        ["guests/initrd.gz", "guests/vmlinuz-6.12"]
    );
    assert!(plan.toml.contains("mode = \"off\""));
    let error = with("[host]\nmoed = \"off\"\n").expect_err("mistyped");
    assert!(
        error.is::<Usage>() && error.to_string().contains("mode"),
        "{error}"
    );
    std::fs::remove_file(&path).expect("ours");
}

#[test]
fn staying_guests_are_told_before_the_workload_s_words() {
    assert_eq!(with_workload("quiet", "", true), "quiet perigee.stay");
    assert_eq!(
        with_workload("quiet", "--mib 3", true),
        "quiet perigee.stay -- --mib 3"
    );
    assert_eq!(
        with_workload("quiet -- --own", "--mib 3", false),
        "quiet -- --own"
    );
}
