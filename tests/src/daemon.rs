//! The daemon under test: started, asked, stopped.

use std::collections::VecDeque;
use std::env;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::namespace::Namespace;
use crate::process::{Exit, Process, finish, output_of};
use crate::scratch::Scratch;
use crate::wait::until;

/// A running interceptor; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    control: PathBuf,
    notifications: Notifications,
    namespace: Arc<Namespace>,
    arguments: Vec<String>,
    scratch: Scratch,
    quiet: bool,
}

/// One rule as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleState {
    /// Its id, as `rule remove` takes it.
    pub id: u64,
    /// Destination: an address, a prefix or `any`.
    pub destination: String,
    /// Packets it has matched.
    pub packets: u64,
}

impl Daemon {
    /// Starts `interceptor run` with `arguments` in `namespace` and waits until it says that it is ready.
    pub fn start(namespace: &Arc<Namespace>, arguments: &[&str]) -> Result<Self> {
        let mut daemon = Self::launch(namespace, arguments)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts it without waiting.
    pub fn launch(namespace: &Arc<Namespace>, arguments: &[&str]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let notifications = Notifications::at(&scratch.path(NOTIFY))?;
        let arguments: Vec<_> = arguments.iter().map(|&word| word.to_owned()).collect();
        Ok(Self {
            process: spawn(namespace, &scratch, &arguments)?,
            control: scratch.path(CONTROL),
            notifications,
            namespace: Arc::clone(namespace),
            arguments,
            scratch,
            quiet: false,
        })
    }

    /// The same, without showing its log at the end.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Starts it once more after its end, with the same arguments and the same control socket.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.namespace, &self.scratch, &self.arguments)?;
        self.wait_ready()
    }

    /// Waits until the daemon says that it is ready (`READY=1`, sd_notify(3)).
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_notification("READY=1")
    }

    /// Waits until a notification with the line `state` arrives.
    pub fn wait_notification(&mut self, state: &str) -> Result<()> {
        let mut texts = Vec::new();
        until(&format!("the daemon notifies {state}"), || {
            if self.process.has_ended() {
                return Some(Err(anyhow!(
                    "interceptor ended instead of saying {state}:\n{}",
                    self.process.log()
                )));
            }
            let text = self.notifications.next()?;
            let found = text.lines().any(|line| line == state);
            texts.push(text);
            found.then_some(Ok(()))
        })
        .with_context(|| format!("it notified {texts:?} and logged:\n{}", self.process.log()))?
    }

    /// Asks it to stop by SIGTERM and gives its exit code.
    pub fn stop(&mut self) -> Result<i32> {
        self.stop_by(Signal::SIGTERM)
    }

    /// Asks it to stop by `signal` and gives its exit code.
    pub fn stop_by(&mut self, signal: Signal) -> Result<i32> {
        let status = self.process.end(signal)?;
        status
            .code()
            .with_context(|| format!("interceptor {status}"))
    }

    /// Has it read its configuration again: SIGHUP.
    pub fn hang_up(&self) -> Result<()> {
        self.process.signal(Signal::SIGHUP)
    }

    /// Kills it: SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.end(Signal::SIGKILL)?;
        Ok(())
    }

    /// Runs a client command against it, such as `["rule", "list"]`, and gives its output.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        output_of(self.client(arguments)?)
    }

    /// Runs a client command against it that may fail.
    pub fn try_ask(&self, arguments: &[&str]) -> Result<Exit> {
        finish(self.client(arguments)?)
    }

    /// Its status.
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.ask(&["status", "--json"])?).context("status is not JSON")
    }

    /// Waits until its status is as `expected` says.
    pub fn wait_status(&self, what: &str, expected: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        until(what, || {
            let status = self.status().ok()?;
            let found = expected(&status);
            last = status.clone();
            found.then_some(status)
        })
        .with_context(|| format!("the last status was {last:#}\nlog:\n{}", self.log()))
    }

    /// Waits until it has attached to `interface`.
    pub fn wait_attached(&self, interface: &str) -> Result<Value> {
        self.wait_status(&format!("{interface} is attached"), |status| {
            interface_state(status, interface).is_some_and(|state| state == "attached")
        })
    }

    /// The state of `interface`, such as `attached` or `waiting`.
    pub fn interface_state(&self, interface: &str) -> Result<String> {
        let status = self.status()?;
        interface_state(&status, interface)
            .with_context(|| format!("no interface {interface} in {status:#}"))
    }

    /// Its rules.
    pub fn rules(&self) -> Result<Vec<RuleState>> {
        rule_list(&serde_json::from_str(
            &self.ask(&["rule", "list", "--json"])?,
        )?)
    }

    /// Packets matched by the rules for `destination`.
    pub fn matched(&self, destination: &str) -> Result<u64> {
        Ok(self
            .rules()?
            .iter()
            .filter(|rule| rule.destination == destination)
            .map(|rule| rule.packets)
            .sum())
    }

    /// Adds a rule by the command line and gives its id.
    pub fn rule_add(&self, arguments: &[&str]) -> Result<u64> {
        let before = self.rules()?;
        let mut line = vec!["rule", "add"];
        line.extend(arguments);
        self.ask(&line)?;
        self.rules()?
            .into_iter()
            .find(|rule| before.iter().all(|known| known.id != rule.id))
            .map(|rule| rule.id)
            .context("`rule add` added no rule")
    }

    /// Removes a rule by the command line.
    pub fn rule_remove(&self, id: u64) -> Result<()> {
        self.ask(&["rule", "remove", &id.to_string()])?;
        Ok(())
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until its log has `text`.
    pub fn wait_log(&mut self, text: &str) -> Result<()> {
        self.process.wait_for_line(text)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Path of its control socket.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }

    fn client(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.args(arguments).arg("--control").arg(&self.control);
        Ok(command)
    }
}

/// What the daemon tells its service manager, taken as it comes as a manager does: who notifies waits for that.
#[derive(Debug)]
struct Notifications(Arc<Mutex<VecDeque<String>>>);

impl Notifications {
    fn at(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path).context("cannot make a notify socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let texts = Arc::new(Mutex::new(VecDeque::new()));
        let weak = Arc::downgrade(&texts);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Some(texts) = weak.upgrade() {
                if let Ok(length) = socket.recv(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    let mut texts = texts.lock().unwrap_or_else(PoisonError::into_inner);
                    texts.push_back(text);
                }
            }
        });
        Ok(Self(texts))
    }

    fn next(&self) -> Option<String> {
        let Self(texts) = self;
        let mut texts = texts.lock().unwrap_or_else(PoisonError::into_inner);
        texts.pop_front()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.quiet {
            // The harness shows this for tests that fail, and for those only.
            eprintln!("--- log of interceptor {} ---\n{}", self.pid(), self.log());
        }
    }
}

/// Runs `interceptor` with `arguments` in `namespace`, a control socket of its own included where it is `run`, to its end.
pub fn interceptor(namespace: &Namespace, arguments: &[&str]) -> Result<Exit> {
    let scratch = Scratch::new()?;
    let mut command = namespace.command(binary()?);
    command.args(arguments).env(READER_VARIABLE, reader());
    if matches!(arguments.first(), Some(&"run")) && !arguments.contains(&"--control") {
        command.arg("--control").arg(scratch.path("control.sock"));
    }
    finish(command)
}

/// The reader that daemons are started with where a test says nothing else: AF_XDP in a test binary whose name ends so,
/// TUN in all others.
pub fn reader() -> &'static str {
    static READER: LazyLock<&str> = LazyLock::new(|| {
        let program = env::current_exe().unwrap_or_default();
        let name = program.file_stem().unwrap_or_default().to_string_lossy();
        // Cargo adds a hash to the name.
        let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
        if name.ends_with("af_xdp") {
            "af-xdp"
        } else {
            "tun"
        }
    });
    *READER
}

/// The daemon's binary: `INTERCEPTOR_BIN`, or what cargo built with the same profile as the running program.
pub fn binary() -> Result<PathBuf> {
    let built = || {
        let program = env::current_exe().unwrap_or_default();
        let folder = program.ancestors().skip(1);
        // Cargo puts tests one folder below the programs.
        let folder = folder.into_iter().find(|folder| !folder.ends_with("deps"));
        folder.unwrap_or(Path::new("")).join("interceptor")
    };
    let path = env::var_os("INTERCEPTOR_BIN").map_or_else(built, PathBuf::from);
    path.canonicalize().with_context(|| {
        format!(
            "no daemon at {}: run `cargo build -p interceptor`, or name one in INTERCEPTOR_BIN",
            path.display()
        )
    })
}

/// Reads the rules of `rule list --json`, or those within a status.
pub fn rule_list(json: &Value) -> Result<Vec<RuleState>> {
    let Some(rules) = json.as_array().or_else(|| json["rules"].as_array()) else {
        bail!("no rules in {json:#}");
    };
    rules
        .iter()
        .map(|rule| {
            Ok(RuleState {
                id: rule["id"].as_u64().context("a rule without id")?,
                destination: rule["destination"]
                    .as_str()
                    .context("a rule without destination")?
                    .to_owned(),
                packets: rule["packets"].as_u64().context("a rule without packets")?,
            })
        })
        .collect()
}

fn spawn(namespace: &Namespace, scratch: &Scratch, arguments: &[String]) -> Result<Process> {
    let mut command = namespace.command(binary()?);
    command
        .args(["run", "--control"])
        .arg(scratch.path(CONTROL))
        .args(arguments)
        .env(READER_VARIABLE, reader())
        .env("NOTIFY_SOCKET", scratch.path(NOTIFY));
    if !arguments.iter().any(|argument| argument == "--log") {
        command.args(["--log", "debug"]);
    }
    Process::spawn("interceptor", command)
}

fn interface_state(status: &Value, interface: &str) -> Option<String> {
    let interfaces = status["interfaces"].as_array()?;
    let found = interfaces
        .iter()
        .find(|candidate| candidate["name"] == interface)?;
    Some(found["state"].as_str()?.to_owned())
}

const READER_VARIABLE: &str = "INTERCEPTOR_READER_KIND";
const CONTROL: &str = "control.sock";
const NOTIFY: &str = "notify.sock";
