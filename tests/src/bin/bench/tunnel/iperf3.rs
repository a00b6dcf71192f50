//! Bulk TCP as iperf3 measures it: a cross-check by somebody else's program.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Process, finish};
use serde_json::Value;

use super::path::{FAR, NEAR, Path, SERVER};
use crate::pin::Pinned;

/// How long it sends, in whole seconds, which it counts in.
const SECONDS: u32 = 1;
/// How long it takes.
pub(super) const TIME: Duration = Duration::from_millis(SECONDS as u64 * 1_000 + 300);

/// Megabits of payload a second, as the far end received them.
pub(super) fn throughput(path: &Path) -> Result<f64> {
    let (address, port) = (SERVER.ip().to_string(), PORT.to_string());
    let mut server = path.peer.command("iperf3");
    server.args(["-s", "-1", "--forceflush", "-B", &address, "-p", &port]);
    // Both inherit the processor.
    let pinned = Pinned::to(FAR)?;
    let mut server = Process::spawn("iperf3", server)?;
    drop(pinned);
    server.wait_for_line("Server listening")?;
    let mut client = path.client.command("iperf3");
    client
        .args(["-c", &address, "-p", &port, "-J", "-C", "reno"])
        .args(["-t", &SECONDS.to_string()])
        .args(["-w", &path.buffer.min(BUFFER_MOST).to_string()]);
    let _pinned = Pinned::to(NEAR)?;
    let printed = finish(client)?;
    ensure!(
        printed.code == Some(0),
        "iperf3: {}{}",
        printed.stdout,
        printed.stderr
    );
    received(&printed.stdout)
}

fn received(json: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(json).context("iperf3 printed no JSON")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3 does not tell what was received")? * 1e-6)
}

const PORT: u16 = SERVER.port() + 1;
/// More than that it cannot set where `net.core.rmem_max` is what kernels come with; octets.
const BUFFER_MOST: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_far_end_received_is_what_counts() {
        let json = r#"{"end": {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 8e9}}}"#;

        assert!((received(json).unwrap() - 8_000.0).abs() < 1e-6);
        assert!(received("{}").is_err());
        assert!(received("iperf3: error").is_err());
    }
}
