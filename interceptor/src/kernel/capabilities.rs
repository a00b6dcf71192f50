//! The capabilities that the kernel half takes, and which of them the process lacks.

use std::fmt;
use std::fs;

/// A capability (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capability {
    /// Devices, routes, marks, and attaching programs.
    NetAdmin,
    /// Loading programs and maps.
    Bpf,
    /// What the verifier lets privileged programs do, such as arithmetic on packet pointers.
    Perfmon,
}

impl Capability {
    const ALL: [Self; 3] = [Self::NetAdmin, Self::Bpf, Self::Perfmon];

    /// Those that are not effective in this process; none where the kernel does not tell.
    pub(crate) fn missing() -> Vec<Self> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        missing_in(&status)
    }

    fn is_in(self, effective: u64) -> bool {
        const SYS_ADMIN: u64 = 1 << 21;
        match self {
            Self::NetAdmin => effective & (1 << 12) != 0,
            // CAP_SYS_ADMIN comprises them still (Linux 5.8, a17b53c4a4b5).
            Self::Bpf => effective & (SYS_ADMIN | 1 << 39) != 0,
            Self::Perfmon => effective & (SYS_ADMIN | 1 << 38) != 0,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::Bpf => "CAP_BPF",
            Self::Perfmon => "CAP_PERFMON",
        })
    }
}

fn missing_in(status: &str) -> Vec<Capability> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let Some(effective) = effective else {
        return Vec::new();
    };
    let mut missing = Capability::ALL.to_vec();
    missing.retain(|capability| !capability.is_in(effective));
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_effective_is_missing() {
        use Capability::{Bpf, NetAdmin, Perfmon};
        for (set, missing) in [
            ("0000000000000000", &[NetAdmin, Bpf, Perfmon][..]),
            ("0000000000001000", &[Bpf, Perfmon]),
            ("0000008000001000", &[Perfmon]),
            ("000000c000001000", &[]),
            ("0000000000200000", &[NetAdmin]),
            ("000001ffffffffff", &[]),
        ] {
            let status = format!("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{set}\n");
            assert_eq!(missing_in(&status), missing, "{set}");
        }
    }

    #[test]
    fn where_the_kernel_does_not_tell_nothing_is_missing() {
        for status in ["", "CapEff:\n", "CapEff:\tmany\n"] {
            assert_eq!(missing_in(status), []);
        }
    }
}
