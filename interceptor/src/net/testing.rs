//! What tests on the network share: a namespace of their own, programs in it, and sockets that close at once.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a network namespace of its own, on a thread of its own, in bounded time.
pub(crate) fn in_namespace<F, Fut>(test: F)
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("this test makes a network namespace: run it as root (CAP_SYS_ADMIN)");
        run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_mins(1), test())
                .await
                .expect("the test hangs");
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs one command in the calling thread's namespace and gives what it prints; it must succeed.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let mut process = Command::new(program);
    process
        .args(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = spawn(&mut process)
        .and_then(Child::wait_with_output)
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Gives an interface of the calling thread's namespace an address, and returns when the kernel receives what is sent to
/// it: for IPv6, a worker sees to that a moment later (`addrconf_dad_work`, Linux 6.18).
pub(crate) fn add_address(address: &str, device: &str) {
    let nodad = if address.contains(':') { "nodad" } else { "" };
    run(&format!("ip address add {address} dev {device} {nodad}"));
    let host = address.split('/').next().unwrap_or(address);
    wait_for_route(&format!("local {host} "));
}

/// Returns when an interface of the calling thread's namespace that was brought up carries packets: where another one had
/// to come up for that, a worker notices (`linkwatch_event`, Linux 6.18).
pub(crate) fn wait_for_carrier(device: &str) {
    wait_for_route(&format!("multicast ff00::/8 dev {device} "));
}

fn wait_for_route(route: &str) {
    let family = if route.contains(':') { "-6" } else { "-4" };
    let since = Instant::now();
    loop {
        let routes = run(&format!("ip {family} route show table local"));
        if routes.contains(route) {
            return;
        }
        assert!(
            since.elapsed() < Duration::from_mins(1),
            "no route `{route}`:\n{routes}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a program; it has no socket that is opened where no program starts.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// No program starts while one of these is held, so that a socket that is opened then is closed when it is closed here:
/// until a program runs, it has every socket of this process.
pub(crate) struct NoProgramStarts(
    #[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>,
);

impl NoProgramStarts {
    pub(crate) fn wait() -> Self {
        Self(STARTING.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A port of 127.0.0.1 that nobody has, by UDP or TCP, and that nobody gets who takes any (ip_local_port_range begins at
/// 32768).
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(port < 30_000, "no port is free");
        let address = (Ipv4Addr::LOCALHOST, port);
        if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
            return port;
        }
    }
}

/// Held for writing while a program starts.
static STARTING: RwLock<()> = RwLock::new(());
