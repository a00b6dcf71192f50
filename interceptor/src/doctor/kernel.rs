//! The kernel: its version, and whether it takes what the daemon is made of.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use socket2::{Domain, Socket, Type};

use super::Point;
use crate::kernel::{self, Capability, Kernel};

/// The oldest kernel that the programs are written for.
const OLDEST: (u32, u32) = (5, 15);

pub(super) fn examine() -> Vec<Point> {
    vec![
        version(),
        capabilities(),
        programs(),
        hooks(),
        jit(),
        tun(),
        af_xdp(),
    ]
}

fn version() -> Point {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let found = format!("Linux {release}");
    match major_and_minor(release) {
        Some(version) if version < OLDEST => Point::bad(
            "kernel",
            found,
            "it is written for Linux 5.15 and newer; take a newer kernel",
        ),
        Some(_) => Point::good("kernel", found),
        None => Point::doubtful(
            "kernel",
            found,
            "its version cannot be read; it should be 5.15 or newer",
        ),
    }
}

fn major_and_minor(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn capabilities() -> Point {
    let missing = Capability::missing();
    if missing.is_empty() {
        return Point::good("privileges", "CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON");
    }
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Point::bad(
        "privileges",
        format!("{} missing", names.join(", ")),
        "run as root or with these capabilities; what follows may fail for want of them only",
    )
}

fn programs() -> Point {
    let verified = Kernel::load(None, 0).and_then(|mut kernel| kernel.verify());
    match verified {
        Ok(()) => Point::good("BPF", "the kernel takes all programs and maps"),
        Err(error) => Point::bad(
            "BPF",
            format!("{error:#}"),
            "a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT is needed; containers also need the bpf system call \
             permitted by their seccomp profile",
        ),
    }
}

fn hooks() -> Point {
    if !Capability::missing().is_empty() {
        return Point::doubtful(
            "TC hook",
            "which there are cannot be told without privileges",
            "run as root",
        );
    }
    if kernel::has_tcx() {
        return Point::good("TC hook", "TCX, which leaves nothing behind");
    }
    Point::good(
        "TC hook",
        "clsact; after kill -9 a filter stays until the next start and lets everything pass",
    )
}

fn jit() -> Point {
    let setting = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable");
    match setting.as_deref().map(str::trim) {
        Ok("0") => Point::doubtful(
            "BPF JIT",
            "off, so that every packet of the tunnel pays for an interpreter",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Ok(_) => Point::good("BPF JIT", "on"),
        Err(error) if error.kind() == ErrorKind::NotFound => Point::good(
            "BPF JIT",
            "set outside of this network namespace, or always on",
        ),
        Err(error) => Point::doubtful(
            "BPF JIT",
            format!("its setting cannot be read: {error}"),
            "see that net.core.bpf_jit_enable is 1",
        ),
    }
}

fn tun() -> Point {
    let path = Path::new("/dev/net/tun");
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Point::good("TUN", "/dev/net/tun can be opened"),
        Err(error) => Point::bad(
            "TUN",
            format!("{} cannot be opened: {error}", path.display()),
            "load the module (modprobe tun); give a container the device (--device /dev/net/tun)",
        ),
    }
}

fn af_xdp() -> Point {
    match Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None) {
        Ok(_) => Point::good("AF_XDP", "sockets can be made"),
        Err(error) => Point::doubtful(
            "AF_XDP",
            format!("no sockets: {error}"),
            "packets are read by TUN, which needs nothing of it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_version_is_read_whatever_follows_it() {
        for (release, version) in [
            ("6.18.5", Some((6, 18))),
            ("5.15.0-91-generic", Some((5, 15))),
            ("6.1-rc3+", Some((6, 1))),
            ("", None),
            ("six.one", None),
        ] {
            assert_eq!(major_and_minor(release), version, "{release}");
        }
    }
}
