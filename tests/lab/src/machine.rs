//! The virtual machine as QEMU sees it: accelerator, processor, memory, disk and kernel command line.
//!
//! Owns the QEMU command line, which a snapshot's maker and its users must share to the letter, and the
//! question whether KVM really works here. Never keeps a machine running.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{self, command};
use crate::image::Image;
use crate::layout::Layout;

/// Kernel command line: little to say, no mitigations, no clocks that emulation makes unsteady.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 apparmor=0 \
    selinux=0 nowatchdog tsc=reliable no_timer_check rcupdate.rcu_expedited=1 net.ifnames=0 \
    systemd.show_status=0 systemd.log_target=kmsg";
/// Memory of a node.
const MEMORY_MIB: u32 = 384;
/// A guest that runs at all has said so by then.
const PROBE_LIMIT: &str = "3";

/// What runs the guests' instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator: works everywhere, and guest user space is 10 to 100 times slower.
    Tcg,
}

impl Accelerator {
    /// The accelerator that works here: KVM only if a guest was seen to run with it (some hosts offer a
    /// /dev/kvm on which guests hang). Remembered in the cache until the host reboots.
    pub fn find(layout: &Layout, image: &Image) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let memory = layout.cache.join("accelerator");
        let known = fs::read_to_string(&memory).unwrap_or_default();
        if let Some(answer) = known.strip_prefix(&boot) {
            return if answer == "kvm" { Self::Kvm } else { Self::Tcg };
        }
        let found =
            if fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() && guest_runs(image) {
                Self::Kvm
            } else {
                Self::Tcg
            };
        // Only a memory: without it the next run asks again.
        let _ = fs::write(&memory, format!("{boot}{}", found.name()));
        found
    }

    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi,tb-size=128",
        }
    }
}

/// One processor, and room for a second that never comes: for a machine that can only ever have one QEMU before 8.1 leaves
/// out the memory barriers between it and the thread of its devices, and once in a while a network card stops sending for
/// good ("NETDEV WATCHDOG: transmit queue 0 timed out").
const PROCESSORS: &str = "1,maxcpus=2";

/// The QEMU command line that every machine of the lab has in common. `extra` is put behind the kernel's
/// own arguments.
pub fn qemu(image: &Image, accelerator: Accelerator, disk: &Path, extra: &str) -> Command {
    let mut qemu = command(&["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]);
    qemu.args([
        "-M",
        "pc,usb=off,vmport=off,hpet=off",
        "-cpu",
        "max,la57=off",
        "-smp",
        PROCESSORS,
        "-no-reboot",
    ])
    .args(["-accel", accelerator.argument(), "-m", &MEMORY_MIB.to_string(), "-rtc", "base=utc"])
    .arg("-drive")
    .arg(format!("file={},format=qcow2,if=none,id=disk,cache=unsafe", disk.display()))
    .args(["-device", "virtio-blk-pci,drive=disk"])
    .arg("-kernel")
    .arg(image.kernel())
    .arg("-initrd")
    .arg(image.initrd())
    .arg("-append")
    .arg(format!("{KERNEL_ARGUMENTS} {extra}").trim_end());
    qemu
}

/// What a snapshot depends on beside the image: another QEMU, processor or command line cannot load it.
pub fn fingerprint(accelerator: Accelerator) -> anyhow::Result<String> {
    let version = command::must(command(&["qemu-system-x86_64", "--version"]), b"", Duration::from_secs(20))?;
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    let model = if accelerator == Accelerator::Kvm { model } else { "" };
    let accelerator = accelerator.argument();
    Ok(format!("{}|{accelerator}|{PROCESSORS}|{MEMORY_MIB}|{KERNEL_ARGUMENTS}|{model}", version.stdout))
}

/// Boots the smallest guest with KVM and believes only the word that the guest itself prints.
fn guest_runs(image: &Image) -> bool {
    let mut guest = command(&["timeout", "-k", "1", PROBE_LIMIT, "qemu-system-x86_64", "-nodefaults"]);
    guest
        .args(["-no-user-config", "-display", "none", "-M", "pc,usb=off", "-cpu", "max", "-m", "128"])
        .args(["-no-reboot", "-accel", "kvm", "-serial", "stdio", "-append"])
        .arg("console=ttyS0 quiet panic=-1 nokaslr mitigations=off")
        .arg("-kernel")
        .arg(image.kernel())
        .arg("-initrd")
        .arg(image.probe());
    command::run(guest, b"", Duration::from_secs(10)).is_ok_and(|said| said.stdout.contains("GUEST-RUNS"))
}
