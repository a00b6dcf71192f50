//! What hangs on the TC hooks of the host's interfaces, ours or somebody else's.

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TcAttachType};

use super::clsact;

/// Whether the kernel has TCX hooks (6.6).
pub(crate) fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Egress).is_ok()
}

/// What hangs on the TC egress hook of an interface, be it ours or somebody else's: TCX programs by name,
/// and clsact filters.
pub(crate) fn neighbours(name: &str, index: u32) -> Result<Vec<String>> {
    let mut neighbours = Vec::new();
    if has_tcx() {
        let (_, programs) = SchedClassifier::query_tcx(name, TcAttachType::Egress)
            .with_context(|| format!("{name}: cannot list the programs on its TC egress hook"))?;
        for program in programs {
            let name = program.name_as_str().unwrap_or("a nameless program");
            neighbours.push(format!("{name} (TCX, program {})", program.id()));
        }
    }
    let filters = clsact::egress_filters(index)
        .with_context(|| format!("{name}: cannot list the clsact filters"))?;
    if filters > 0 {
        neighbours.push("filters of the clsact qdisc".to_owned());
    }
    Ok(neighbours)
}
