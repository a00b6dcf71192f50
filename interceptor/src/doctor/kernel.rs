//! The kernel: its version, and whether it takes what the daemon is made of.

use std::fs;
use std::path::Path;

use anyhow::{Error, Result};

use super::Point;
use crate::config::{AttachMode, Config};
use crate::kernel::{self, Attached, Capability, Kernel};
use crate::net::Namespace;

/// The oldest kernel that the programs are written for.
const OLDEST: (u32, u32) = (5, 15);

const HOOK: &str = "TC hook";

const JIT: &str = "BPF JIT";

const AUTO: &str = "leave `attach` at \"auto\", which takes clsact here";

pub(super) fn examine(config: &Config) -> Vec<Point> {
    let mut points = vec![
        version(config),
        privileges(config, &Capability::missing()),
        btf(),
    ];
    // What is not remembered at all is not remembered in the kernel.
    let answers = if config.dns.cache.enabled {
        config.kernel_cache
    } else {
        0
    };
    let loaded = Kernel::load(config.bpf_object.as_deref(), answers).and_then(|mut kernel| {
        let refused = kernel.verify()?;
        Ok((kernel, refused))
    });
    match loaded {
        Ok((mut kernel, refused)) => {
            points.push(programs(answers, kernel.answers().capacity(), refused));
            points.push(hook(config, &mut kernel));
            points.push(jit(kernel.is_compiled()));
        }
        Err(error) => points.push(Point::of_kernel(
            config,
            "BPF",
            format!("{error:#}"),
            "a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_ACT is needed; containers also need the bpf system call \
             permitted by their seccomp profile",
        )),
    }
    points
}

impl Point {
    /// What is amiss with the kernel half: without tunnels it only counts, so that the daemon does without.
    fn of_kernel(config: &Config, topic: &str, found: String, advice: &str) -> Self {
        if config.interfaces.is_empty() {
            let found = format!("{found}; without it rules have no counters");
            return Self::doubtful(topic, found, advice);
        }
        Self::bad(topic, found, advice)
    }
}

fn version(config: &Config) -> Point {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let found = format!("Linux {release}");
    match major_and_minor(release) {
        Some(version) if version < OLDEST => Point::of_kernel(
            config,
            "kernel",
            format!("{found}, while the kernel half is written for 5.15 and newer"),
            "take a newer kernel",
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

fn privileges(config: &Config, missing: &[Capability]) -> Point {
    if missing.is_empty() {
        return Point::good("privileges", "CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON");
    }
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let found = format!("{} missing", names.join(", "));
    let advice =
        "run as root or with these capabilities; what follows may fail for want of them only";
    if missing.contains(&Capability::NetAdmin) {
        return Point::bad("privileges", found, advice);
    }
    Point::of_kernel(config, "privileges", found, advice)
}

/// The programs were compiled for all kernels at once and look at none of the kernel's own types.
fn btf() -> Point {
    let found = if Path::new("/sys/kernel/btf/vmlinux").exists() {
        "the kernel has its own types' (vmlinux), which are not needed"
    } else {
        "none of the kernel's own types (vmlinux), and none is needed"
    };
    Point::good("BTF", found)
}

/// `wanted` answers were asked for, and there is room for `kept` of them; `refused` says why the kernel gives none.
fn programs(wanted: u32, kept: u32, refused: Option<Error>) -> Point {
    let found = "the kernel takes the programs and their maps (hash, LRU hash, LPM trie, arrays)";
    if let Some(reason) = refused {
        return Point::doubtful(
            "BPF",
            format!("{found}, but not the programs that answer: {reason:#}"),
            "nothing has to be done: the daemon gives all answers itself",
        );
    }
    if kept < wanted {
        return Point::doubtful(
            "BPF",
            format!(
                "{found}, but has no room for {wanted} answers, so that the daemon gives them all itself"
            ),
            "a smaller --kernel-cache may fit",
        );
    }
    match kept {
        0 => Point::good("BPF", format!("{found}, which keep no answers")),
        _ => Point::good("BPF", format!("{found}, with room for {kept} answers")),
    }
}

fn hook(config: &Config, kernel: &mut Kernel) -> Point {
    let attached = Namespace::new().and_then(|it| it.enter(|| kernel.try_attaching(config.attach)));
    match attached {
        Ok(Ok(Attached::Tcx)) => Point::good(HOOK, "TCX, which leaves nothing behind"),
        Ok(Ok(Attached::Clsact)) => Point::good(
            HOOK,
            "clsact; after kill -9 a filter stays until the next start and lets everything pass",
        ),
        Ok(Err(error)) => Point::of_kernel(
            config,
            HOOK,
            format!("a program cannot be attached: {error:#}"),
            match config.attach {
                AttachMode::Tcx => AUTO,
                AttachMode::Auto | AttachMode::Clsact => {
                    "clsact takes the kernel's modules sch_ingress and cls_bpf (modprobe cls_bpf)"
                }
            },
        ),
        Err(error) => untried_hook(config, kernel::has_tcx(), &error.to_string()),
    }
}

fn untried_hook(config: &Config, has_tcx: bool, why: &str) -> Point {
    match (config.attach, has_tcx) {
        (AttachMode::Auto | AttachMode::Tcx, true) => {
            Point::good(HOOK, format!("TCX, untried here: {why}"))
        }
        (AttachMode::Tcx, false) => Point::of_kernel(
            config,
            HOOK,
            "no TCX, which came with Linux 6.6".to_owned(),
            AUTO,
        ),
        _ => Point::doubtful(
            HOOK,
            format!("clsact, untried here: {why}"),
            "run as root, which may make a network namespace to try it in",
        ),
    }
}

/// What became of a loaded program tells more than the setting, which a namespace may not show.
fn jit(is_compiled: Result<bool>) -> Point {
    match is_compiled {
        Ok(true) => Point::good(JIT, "on: the programs are compiled"),
        Ok(false) => Point::doubtful(
            JIT,
            "off, so that every packet of the tunnel pays for an interpreter",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Err(error) => Point::doubtful(
            JIT,
            format!("cannot tell whether the programs are compiled: {error:#}"),
            "see that net.core.bpf_jit_enable is 1",
        ),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::doctor::Verdict;
    use crate::doctor::testing::config;

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

    #[test]
    fn without_tunnels_the_daemon_needs_no_more_than_net_admin() {
        use Capability::{Bpf, NetAdmin, Perfmon};
        for (tunnels, missing, verdict) in [
            (&["wg0"][..], &[][..], Verdict::Good),
            (&["wg0"], &[Bpf, Perfmon], Verdict::Bad),
            (&[], &[Bpf, Perfmon], Verdict::Doubtful),
            (&[], &[NetAdmin], Verdict::Bad),
        ] {
            let point = privileges(&with_tunnels(tunnels), missing);
            assert_eq!(point.verdict, verdict, "{tunnels:?}: {missing:?}");
        }
    }

    #[test]
    fn a_kernel_that_refuses_only_to_answer_is_doubtful() {
        for (wanted, kept, refused, verdict) in [
            (0, 0, None, Verdict::Good),
            (16, 16, None, Verdict::Good),
            (16, 0, None, Verdict::Doubtful),
            (16, 16, Some(anyhow!("no")), Verdict::Doubtful),
        ] {
            assert_eq!(programs(wanted, kept, refused).verdict, verdict, "{wanted}");
        }
    }

    #[test]
    fn a_hook_that_was_asked_for_and_is_not_there_is_bad() {
        for (attach, has_tcx, verdict) in [
            (AttachMode::Auto, true, Verdict::Good),
            (AttachMode::Auto, false, Verdict::Doubtful),
            (AttachMode::Tcx, false, Verdict::Bad),
            (AttachMode::Clsact, true, Verdict::Doubtful),
        ] {
            let config = Config {
                attach,
                ..with_tunnels(&["wg0"])
            };
            let point = untried_hook(&config, has_tcx, "no namespaces");
            assert_eq!(point.verdict, verdict, "{attach:?}, TCX: {has_tcx}");
        }
    }

    #[test]
    fn programs_that_are_interpreted_are_doubtful() {
        assert_eq!(jit(Ok(true)).verdict, Verdict::Good);
        assert_eq!(jit(Ok(false)).verdict, Verdict::Doubtful);
        assert_eq!(jit(Err(anyhow!("no"))).verdict, Verdict::Doubtful);
    }

    fn with_tunnels(names: &[&str]) -> Config {
        let mut config = config("");
        config.interfaces = names.iter().map(|it| (*it).to_owned()).collect();
        config
    }
}
