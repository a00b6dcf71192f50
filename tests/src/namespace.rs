//! Network namespaces with unique names, removed when dropped.
//!
//! A lab is mostly set-up, and where processors are emulated each process that sets something up takes a tenth of a
//! second: what can be done without one is, and `ip` takes many lines at once.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::process::output_of;
use crate::scratch;
use crate::starting;
use crate::wait::{patience, until};
use crate::wireguard;

/// A network namespace of this process's own.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
    /// What its commands do before they become the program that they are for, as a shell script; empty for nothing.
    prelude: String,
}

impl Namespace {
    /// A fresh namespace, its loopback up; `role` is the last part of its name.
    pub fn new(role: &str) -> Result<Self> {
        static SWEPT: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);

        require_root()?;
        SWEPT.call_once(sweep);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{role}", process::id());
        add(&name)?;
        let path = path_of(&name);
        let handle = match File::open(&path) {
            Ok(handle) => handle,
            Err(error) => {
                remove(&name);
                return Err(error).with_context(|| format!("cannot open {}", path.display()));
            }
        };
        let namespace = Self {
            name,
            handle,
            prelude: String::new(),
        };
        namespace.run("ip link set lo up")?;
        // Without duplicate address detection, addresses are usable at once.
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        namespace.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        // Kernels differ in whether a new namespace inherits these from the host.
        namespace.reverse_path_filter("0")?;
        Ok(namespace)
    }

    /// A fresh namespace whose commands see `own` files or folders where `ours` are for everybody else, of pairs
    /// `(own, ours)`: a host with, say, a resolv.conf of its own.
    pub fn with_own(role: &str, pairs: &[(&Path, &str)]) -> Result<Self> {
        let mut namespace = Self::new(role)?;
        for (own, ours) in pairs {
            // Seen by one command and what it starts: `ip netns exec` has a mount namespace for each. Writing to a String
            // cannot fail.
            let _ = write!(
                namespace.prelude,
                "mount --bind '{}' '{ours}' && ",
                own.display()
            );
        }
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs `program` inside; the child's process id is that of `program`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        if !self.prelude.is_empty() {
            let script = format!("{}exec \"$@\"", self.prelude);
            command.args(["sh", "-c", &script, "sh"]);
        }
        command.arg(program);
        command
    }

    /// Runs a command line, split at white space, inside and gives its output.
    pub fn run(&self, line: &str) -> Result<String> {
        let program = line.split_whitespace().next();
        if program.is_some_and(looks_at_the_network_only) && self.prelude.is_empty() {
            let mut words = line.split_whitespace();
            let mut command = Command::new(words.next().unwrap_or_default());
            command.args(words);
            return self.enter(|| output_of(command))?;
        }
        output_of(self.line(line)?)
    }

    /// A command line, split at white space, that runs inside.
    pub fn line(&self, line: &str) -> Result<Command> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        let mut command = if program == "ip" {
            let mut command = Command::new(program);
            command.args(["-netns", &self.name]);
            command
        } else {
            self.command(program)
        };
        command.args(words);
        Ok(command)
    }

    /// Has one `ip` do several things inside, each as `ip` would be given it; the first that fails is an error.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        let mut command = Command::new("ip");
        command
            .args(["-netns", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = starting::spawn(&mut command).context("cannot run `ip`")?;
        let mut input = child.stdin.take().context("`ip` has no standard input")?;
        // Where it ends early, it says why.
        let _ = input.write_all((lines.join("\n") + "\n").as_bytes());
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "`ip` in {} failed: {}, of: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim(),
                lines.join("; ")
            );
        }
        Ok(())
    }

    /// Runs `work` on a thread inside; sockets it makes belong to the namespace wherever they are used.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.handle, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("cannot enter namespace {}", self.name))?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("the work in namespace {} panicked", self.name))?
        })
    }

    /// Sets a sysctl, given as a path below /proc/sys.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| fs::write(Path::new("/proc/sys").join(key), value))?
            .with_context(|| format!("cannot set {key} to {value}"))
    }

    /// Sets `rp_filter` of every interface there is and will be.
    pub fn reverse_path_filter(&self, value: &str) -> Result<()> {
        let names = self.enter(|| -> Result<Vec<_>> {
            Ok(fs::read_dir("/proc/sys/net/ipv4/conf")?
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect())
        })??;
        for name in names {
            self.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), value)?;
        }
        Ok(())
    }

    /// A UDP socket inside, bound to `local`.
    pub fn udp(&self, local: SocketAddr) -> Result<UdpSocket> {
        self.enter(|| bound(|| UdpSocket::bind(local)))?
            .with_context(|| format!("cannot bind UDP {local} in {}", self.name))
    }

    /// A TCP listener inside, at `local`.
    pub fn listen(&self, local: SocketAddr) -> Result<TcpListener> {
        self.enter(|| bound(|| TcpListener::bind(local)))?
            .with_context(|| format!("cannot listen on TCP {local} in {}", self.name))
    }

    /// A TCP connection from inside to `remote`.
    pub fn connect(&self, remote: SocketAddr) -> Result<TcpStream> {
        self.enter(|| TcpStream::connect(remote))?
            .with_context(|| format!("cannot connect to TCP {remote} from {}", self.name))
    }

    /// A UDP socket inside, connected to `remote`.
    pub fn udp_to(&self, remote: SocketAddr) -> Result<UdpSocket> {
        let any = if remote.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let local = any
            .to_socket_addrs()?
            .next()
            .context("an unspecified address")?;
        let socket = self.udp(local)?;
        self.enter(|| socket.connect(remote))??;
        Ok(socket)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// What `bind` gives once the address is free: a program that another test starts has every socket of this process until
/// it runs, those too that are closed meanwhile.
fn bound<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let since = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && since.elapsed() < patience() => {
                thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome,
        }
    }
}

/// An error that says so when this process is not root.
pub fn require_root() -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "the lab makes network namespaces and needs root: run it with sudo, or `cargo xtask test`"
        );
    }
    Ok(())
}

/// Removes every namespace of this process with all that runs in it, as when the process is interrupted.
pub fn remove_all() {
    for name in list().filter(|name| creator(name) == Some(process::id())) {
        remove(&name);
    }
    wireguard::sweep(|pid| pid == process::id());
    scratch::sweep(|pid| pid == process::id());
}

fn sweep() {
    let gone = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
    for name in list().filter(|name| creator(name).is_some_and(gone)) {
        remove(&name);
    }
    wireguard::sweep(gone);
    scratch::sweep(gone);
}

fn list() -> impl Iterator<Item = String> {
    fs::read_dir(DIRECTORY)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}

fn creator(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    rest.split('-').next()?.parse().ok()
}

fn add(name: &str) -> Result<()> {
    static ADDING: Mutex<bool> = Mutex::new(false);
    let mut prepared = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
    if !*prepared {
        // The first `ip netns add` of a machine changes how its directory is mounted, which must not happen twice at once.
        let mut command = Command::new("ip");
        command.args(["netns", "add", name]);
        output_of(command)?;
        *prepared = true;
        return Ok(());
    }
    let path = path_of(name);
    File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let made = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let ours = Some("/proc/thread-self/ns/net");
            mount(ours, &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        thread.join().map_err(|_| anyhow!("the thread panicked"))
    });
    made?.with_context(|| {
        let _ = fs::remove_file(&path);
        format!("cannot make namespace {name}")
    })
}

/// Whether a program does without the `/sys` that `ip netns exec` mounts for a namespace.
fn looks_at_the_network_only(program: &str) -> bool {
    matches!(program, "dig" | "kdig" | "nft" | "ping" | "wg")
}

/// Ends what runs in namespace `name` and removes it; nothing can be done about failures, and the next sweep tries again.
fn remove(name: &str) {
    let mut killed = BTreeSet::new();
    let _ = until("the namespace's processes are gone", || {
        let alive: Vec<u32> = occupants(name)
            .into_iter()
            .filter(|pid| !is_zombie(*pid))
            .collect();
        for pid in &alive {
            if killed.insert(*pid) {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
        alive.is_empty().then_some(())
    });
    let path = path_of(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(&path);
}

/// The processes in namespace `name` other than this one.
fn occupants(name: &str) -> Vec<u32> {
    let Ok(namespace) = fs::metadata(path_of(name)) else {
        return Vec::new();
    };
    let is_in_it = |pid: &u32| {
        let of = fs::metadata(format!("/proc/{pid}/ns/net"));
        of.is_ok_and(|of| (of.dev(), of.ino()) == (namespace.dev(), namespace.ino()))
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != process::id())
        .filter(is_in_it)
        .collect()
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn is_zombie(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // The state follows the command, which stands in parentheses and may contain anything.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

const PREFIX: &str = "icept-";
const DIRECTORY: &str = "/run/netns";
