//! What tests on the network share: a namespace of their own, programs in it, and sockets that close at once.

use std::future::Future;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

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
    while !run(&format!("ip {family} route show table local")).contains(route) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a program, and returns when it runs.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// No program starts while one of these is held, so that a socket is closed when this process closes it.
pub(crate) struct NoProgramStarts(
    #[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>,
);

impl NoProgramStarts {
    pub(crate) fn wait() -> Self {
        Self(STARTING.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Held while a program starts: until it runs, it has every socket of this process.
static STARTING: RwLock<()> = RwLock::new(());
