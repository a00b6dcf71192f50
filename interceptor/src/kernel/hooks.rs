//! What hangs on the TC hooks of the host's interfaces, ours or somebody else's.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use aya::programs::{SchedClassifier, TcAttachType};

use super::{Capability, clsact, is_classifier};

/// One of the two TC hooks of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// What comes in.
    Ingress,
    /// What goes out, where our classifier is.
    Egress,
}

/// What hangs on a hook, in the order in which it sees packets; TCX programs are before all filters (Linux 6.6,
/// `sch_handle_egress`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hung {
    /// What it is.
    pub(crate) what: String,
    /// Whether it is a classifier of ours.
    pub(crate) is_ours: bool,
    /// Whether it is a TCX program.
    pub(crate) is_tcx: bool,
}

/// Whether the kernel has TCX hooks (6.6).
pub(crate) fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Egress).is_ok()
}

/// What hangs on a hook of the interface with this name and index: TCX programs by name, then the filters of clsact, as one
/// where they run no programs.
pub(crate) fn hung(name: &str, index: u32, hook: Hook) -> Result<Vec<Hung>> {
    if Capability::missing().contains(&Capability::NetAdmin) {
        bail!("that takes CAP_NET_ADMIN");
    }
    let mut hung = Vec::new();
    if has_tcx() {
        let kind = match hook {
            Hook::Ingress => TcAttachType::Ingress,
            Hook::Egress => TcAttachType::Egress,
        };
        let (_, programs) = SchedClassifier::query_tcx(name, kind)
            .with_context(|| format!("{name}: cannot list the programs on its TC {hook} hook"))?;
        for program in programs {
            let name = program.name_as_str().unwrap_or("a nameless program");
            hung.push(Hung {
                what: format!("{name} (TCX, program {})", program.id()),
                is_ours: is_classifier(name),
                is_tcx: true,
            });
        }
    }
    let (programs, filters) = clsact::hung(index, hook)
        .with_context(|| format!("{name}: cannot list the filters of clsact"))?;
    if programs.is_empty() && filters > 0 {
        hung.push(Hung {
            what: "filters of the clsact qdisc".to_owned(),
            is_ours: false,
            is_tcx: false,
        });
    }
    hung.extend(programs.into_iter().map(|name| Hung {
        is_ours: is_classifier(&name),
        what: format!("{name} (clsact)"),
        is_tcx: false,
    }));
    Ok(hung)
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}
