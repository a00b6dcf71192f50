//! One holder per interface, be it a tunnel's tap or a reader device's owner: a lock that lives as long as the process
//! that holds it, one set per network namespace.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

/// The right to tap one interface, given up when dropped or when the process ends, however it ends.
///
/// It is a listening Unix socket with an abstract name. Any local user can take such a name: the lock keeps two
/// daemons from stepping on each other by accident, nothing more.
#[derive(Debug)]
pub struct TapLock {
    _listener: Socket,
}

/// Why an interface cannot be locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process holds the lock.
    #[error(
        "interface {interface} is tapped already by {}; stop that one, or share the interface",
        holder(*.pid)
    )]
    Held {
        /// The interface's index.
        interface: u32,
        /// The holder's process id; unknown when it lives in a process namespace out of sight.
        pid: Option<i32>,
    },
    /// The kernel refused the socket.
    #[error("cannot lock interface {interface} against a second tap")]
    Socket {
        /// The interface's index.
        interface: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

impl TapLock {
    /// Takes the lock of the interface with index `interface`, in the calling thread's network namespace.
    pub fn acquire(interface: u32) -> Result<Self, LockError> {
        let failed = |source| LockError::Socket { interface, source };
        let address = address(interface).map_err(failed)?;
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        match listener.bind(&address) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let pid = holder_of(&address);
                return Err(LockError::Held { interface, pid });
            }
            Err(error) => return Err(failed(error)),
        }
        listener.listen(128).map_err(failed)?;
        Ok(Self {
            _listener: listener,
        })
    }

    /// Whether some process holds the lock of the interface with index `interface`, which may be gone.
    pub fn is_held(interface: u32) -> bool {
        matches!(Self::acquire(interface), Err(LockError::Held { .. }))
    }
}

fn address(interface: u32) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0interceptor/tap/{interface}"))
}

/// The process that listens at `address`.
fn holder_of(address: &SockAddr) -> Option<i32> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
    // A holder never accepts, so once its queue is full a blocking connect would wait for ever.
    probe.set_nonblocking(true).ok()?;
    probe.connect(address).ok()?;
    let credentials = getsockopt(&probe.as_fd(), sockopt::PeerCredentials).ok()?;
    (credentials.pid() != 0).then(|| credentials.pid())
}

fn holder(pid: Option<i32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{NoProgramStarts, in_namespace};

    #[test]
    fn the_second_tap_of_an_interface_is_refused_and_told_who_holds_it() {
        in_namespace(async || {
            let _first = TapLock::acquire(7).expect("the first lock");

            let second = TapLock::acquire(7).expect_err("the second lock");

            let me = std::process::id().cast_signed();
            assert!(matches!(second, LockError::Held { interface: 7, pid } if pid == Some(me)));
            assert_eq!(
                second.to_string(),
                format!(
                    "interface 7 is tapped already by process {me}; stop that one, or share the interface"
                )
            );
        });
    }

    #[test]
    fn any_number_of_refusals_leave_the_lock_held_and_never_hang() {
        in_namespace(async || {
            let _first = TapLock::acquire(7).expect("the first lock");

            for _ in 0..300 {
                assert!(matches!(TapLock::acquire(7), Err(LockError::Held { .. })));
            }
        });
    }

    #[test]
    fn a_lock_that_was_dropped_can_be_taken_again() {
        in_namespace(async || {
            let _closing_frees = NoProgramStarts::wait();
            let first = TapLock::acquire(7).expect("the first lock");
            assert!(TapLock::is_held(7));

            drop(first);

            assert!(!TapLock::is_held(7));
            assert!(TapLock::acquire(7).is_ok());
        });
    }

    #[test]
    fn interfaces_and_namespaces_have_locks_of_their_own() {
        in_namespace(async || {
            let _first = TapLock::acquire(7).expect("the first lock");

            assert!(TapLock::acquire(8).is_ok());
            in_namespace(async || assert!(TapLock::acquire(7).is_ok()));
        });
    }
}
