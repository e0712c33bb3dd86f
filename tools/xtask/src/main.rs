//! The front door.
mod provision; mod say;
fn main() {
 let n = [provision::Part::Qemu, provision::Part::Ovmf, provision::Part::Busybox, provision::Part::Kernel61].into_iter().collect();
 println!("{:#?}", provision::Lab::ensure(&n));
}
mod image; mod initramfs; mod status; mod plan; mod console; mod qemu;
