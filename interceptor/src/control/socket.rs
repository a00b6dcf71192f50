//! The control socket's file: made for its owner alone, taken over when stale, removed at the end.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{AccessFlags, access};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::time;

/// Connections that wait to be accepted, at most.
const BACKLOG: i32 = 64;

/// How long another process may take to bind its socket in the same directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A bound control socket; dropping it removes its file.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

/// The file of a bound socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

/// Why the control socket cannot be bound.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another daemon has it.
    #[error(
        "another interceptor{} answers at {}; stop it or choose another with --control",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .path.display()
    )]
    Live {
        /// The other's process, where the kernel tells it.
        pid: Option<i32>,
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is in its place.
    #[error("{} is there and is no socket; remove it or choose another with --control", .0.display())]
    Occupied(PathBuf),
    /// The system refused.
    #[error("cannot {doing} {}: {source}; choose another with --control", .path.display())]
    System {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Binds the control socket at `path`, mode 0600, in a directory that is made (0755) where it is missing.
pub async fn bind(path: &Path) -> Result<ControlSocket, BindError> {
    let failed = |doing| {
        move |source| BindError::System {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(failed("make the directory of the control socket"))?;
    // Two daemons that start at once must not each take the other's fresh socket for a stale one.
    let _lock = lock(directory)
        .await
        .map_err(failed("lock the directory of the control socket"))?;
    clear(path).await?;
    let listener = listen(path).map_err(failed("bind the control socket"))?;
    let metadata = fs::symlink_metadata(path).map_err(failed("look at the control socket"))?;
    Ok(ControlSocket {
        listener,
        file: SocketFile {
            path: path.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
        },
    })
}

/// Whether [`bind`] would find its way free at `path`, by looking alone.
pub async fn inspect(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::System {
        doing: "bind the control socket",
        path: path.to_owned(),
        source,
    };
    occupant(path).await?;
    // Directories that are missing are made.
    let parents = path.ancestors().skip(1).map(|parent| {
        if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        }
    });
    for parent in parents {
        match access(parent, AccessFlags::W_OK | AccessFlags::X_OK) {
            Ok(()) => break,
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    Ok(())
}

/// Removes a socket that nobody answers at.
async fn clear(path: &Path) -> Result<(), BindError> {
    match occupant(path).await? {
        Occupant::Nobody => Ok(()),
        Occupant::Stale => fs::remove_file(path).map_err(|source| BindError::System {
            doing: "remove the stale control socket",
            path: path.to_owned(),
            source,
        }),
    }
}

/// What may be in the socket's place.
enum Occupant {
    /// Nothing.
    Nobody,
    /// A socket that nobody answers at.
    Stale,
}

/// What is in the socket's place; fails where that cannot be removed.
async fn occupant(path: &Path) -> Result<Occupant, BindError> {
    let failed = |doing| {
        move |source| BindError::System {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(error) => return Err(failed("look at the control socket")(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::Occupied(path.to_owned()));
    }
    match UnixStream::connect(path).await {
        Ok(stream) => Err(BindError::Live {
            pid: stream.peer_cred().ok().and_then(|peer| peer.pid()),
            path: path.to_owned(),
        }),
        // Its queue is full: somebody listens.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(BindError::Live {
            pid: None,
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Occupant::Stale),
        Err(error) => Err(failed("ask who answers at")(error)),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The file takes its mode from the socket (unix(7)), so it never exists with a wider one.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(net::UnixListener::from(socket))
}

async fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    let give_up = time::Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if time::Instant::now() < give_up => {
                time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|it| (it.dev(), it.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;
    use crate::net::testing::NoProgramStarts;

    #[tokio::test]
    async fn the_socket_is_for_its_owner_alone_in_a_directory_that_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/interceptor/control.sock");
        let socket = bind(&path).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let _closing_frees = NoProgramStarts::wait();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        bind(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_live_socket_is_left_to_its_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let socket = bind(&path).await.unwrap();
        assert_eq!(
            bind(&path).await.unwrap_err().to_string(),
            format!(
                "another interceptor (pid {}) answers at {}; stop it or choose another with --control",
                process::id(),
                path.display()
            )
        );
        assert!(path.exists());
        drop(socket);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        fs::write(&path, "notes").unwrap();
        assert_eq!(
            bind(&path).await.unwrap_err().to_string(),
            format!(
                "{} is there and is no socket; remove it or choose another with --control",
                path.display()
            )
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
    }

    #[tokio::test]
    async fn a_look_says_what_binding_would_and_changes_nothing() {
        let _closing_frees = NoProgramStarts::wait();
        let directory = tempfile::tempdir().unwrap();
        let [missing, stale, live, file] =
            ["a/b/missing", "stale", "live", "file"].map(|name| directory.path().join(name));
        drop(net::UnixListener::bind(&stale).unwrap());
        let _live = bind(&live).await.unwrap();
        fs::write(&file, "notes").unwrap();
        for path in [&missing, &stale] {
            inspect(path).await.unwrap();
        }
        assert!(stale.exists() && !directory.path().join("a").exists());
        for path in [&live, &file, &file.join("below")] {
            assert!(inspect(path).await.is_err(), "{}", path.display());
        }
    }

    #[tokio::test]
    async fn a_socket_that_another_has_put_in_place_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let ours = bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _other = net::UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn of_many_that_start_at_once_one_gets_the_socket() {
        let _closing_frees = NoProgramStarts::wait();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(net::UnixListener::bind(&path).unwrap());
        let attempts = (0..8).map(|_| {
            let path = path.clone();
            tokio::spawn(async move { bind(&path).await })
        });
        let mut bound = Vec::new();
        for attempt in attempts.collect::<Vec<_>>() {
            bound.extend(attempt.await.unwrap());
        }
        assert_eq!(bound.len(), 1);
    }
}
