//! What the readers' devices have in common: their names, and silence.

use std::path::Path;

use nix::net::if_::if_nametoindex;
use thiserror::Error;

/// Why a device cannot have the name that was asked for.
#[derive(Debug, Error)]
pub enum NameError {
    /// An interface of that name exists.
    #[error("{0}: an interface of that name exists; choose another with --device")]
    Taken(String),
    /// The name is not one the kernel accepts.
    #[error(
        "`{0}` cannot be an interface name: 1 to 15 bytes, no spaces, `/`, `:` or `%`; choose another with --device"
    )]
    Unsound(String),
}

/// Whether a device can be created by that name.
pub(super) fn check_name(name: &str) -> Result<(), NameError> {
    let sound = (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c.is_whitespace() || matches!(c, '/' | ':' | '%' | '\0'));
    if !sound {
        return Err(NameError::Unsound(name.to_owned()));
    }
    if if_nametoindex(name).is_ok() {
        return Err(NameError::Taken(name.to_owned()));
    }
    Ok(())
}

/// Keeps the kernel from announcing itself on the device: no link-local address (`addr_gen_mode` 1), hence no duplicate
/// address detection, router solicitations or multicast reports. A kernel without IPv6 has none of these files.
pub(super) fn silence(name: &str) {
    let settings = [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("router_solicitations", "0"),
        ("accept_dad", "0"),
    ];
    let directory = Path::new("/proc/sys/net/ipv6/conf").join(name);
    for (setting, value) in settings {
        if let Err(error) = std::fs::write(directory.join(setting), value) {
            tracing::debug!(device = name, setting, %error, "IPv6 noise could not be switched off");
        }
    }
}
