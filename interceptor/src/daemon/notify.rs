//! Word to the service manager, as sd_notify(3) has it; one that does not listen holds nothing up for long.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use std::{env, io};

use sd_notify::NotifyState;
use tracing::warn;

/// How long the manager may take to make room for what it is told once. What it is told regularly can be left out.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells `state`, all of it at once, where there is a service manager to tell (`NOTIFY_SOCKET`).
pub(super) fn notify(state: &[NotifyState<'_>]) {
    let Some(manager) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&manager, state) {
        warn!("the service manager cannot be notified: {error}");
    }
}

/// Fails when the manager has not read what it was told before.
fn send(manager: &OsStr, state: &[NotifyState<'_>]) -> io::Result<()> {
    let address = match manager.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(manager)?,
    };
    let socket = UnixDatagram::unbound()?;
    match state {
        [NotifyState::Watchdog] => socket.set_nonblocking(true)?,
        _ => socket.set_write_timeout(Some(PATIENCE))?,
    }
    let mut lines = String::new();
    for line in state {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{line}");
    }
    socket.send_to_addr(lines.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn the_manager_is_told_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("interceptor/notify/{}", std::process::id());
        let listeners = [
            (path.clone().into(), UnixDatagram::bind(&path).unwrap()),
            (OsString::from(format!("@{name}")), {
                let address = SocketAddr::from_abstract_name(&name).unwrap();
                UnixDatagram::bind_addr(&address).unwrap()
            }),
        ];

        for (manager, listener) in listeners {
            send(&manager, &[NotifyState::Ready]).unwrap();

            let mut buffer = [0; 64];
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\n");
        }
    }

    #[test]
    fn a_manager_that_does_not_listen_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _listener = UnixDatagram::bind(&path).unwrap();

        while send(path.as_os_str(), &[NotifyState::Watchdog]).is_ok() {}

        for state in [NotifyState::Watchdog, NotifyState::Stopping] {
            let refusal = send(path.as_os_str(), &[state]).unwrap_err();
            assert_eq!(refusal.kind(), io::ErrorKind::WouldBlock);
        }
    }
}
