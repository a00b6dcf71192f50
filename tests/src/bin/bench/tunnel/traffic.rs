//! Traffic through a path, and what it costs.

use std::ffi::OsString;
use std::io::{IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, setsockopt, sockopt};

use crate::cpu;
use crate::pin::Pinned;

use super::path::{CLIENT, FAR, NEAR, Path, SERVER};

/// What bulk TCP gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct BulkFigures {
    /// Megabits of payload a second, as the far end received them.
    pub(super) megabits: f64,
    /// CPU seconds of all that took part for a gigabyte (10⁹ bytes) of payload.
    pub(super) cpu: f64,
}

/// One connection from the client to the far end, that sends as fast as it can until this is dropped.
pub(super) struct Bulk<'a> {
    path: &'a Path,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl<'a> Bulk<'a> {
    pub(super) fn start(path: &'a Path) -> Result<Self> {
        let listener = path.peer.listen(SocketAddr::V4(SERVER))?;
        // The accepted one inherits it, and announces a window of about that size.
        setsockopt(&listener, sockopt::RcvBufForce, &path.buffer)?;
        let near = path.client.connect(SocketAddr::V4(SERVER))?;
        setsockopt(&near, sockopt::SndBufForce, &SEND_BUFFER)?;
        setsockopt(&near, sockopt::TcpCongestion, &OsString::from("reno"))?;
        let (far, _) = listener.accept().context("cannot accept")?;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(STUCK))?;
            stream.set_write_timeout(Some(STUCK))?;
        }
        let (received, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let sending = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let _pinned = Pinned::to(NEAR)?;
                send_bulk(near, &stop).context("cannot send by bulk TCP")
            })
        };
        let receiving = {
            let received = Arc::clone(&received);
            thread::spawn(move || {
                let _pinned = Pinned::to(FAR)?;
                receive_bulk(far, &received).context("cannot receive by bulk TCP")
            })
        };
        Ok(Self {
            path,
            received,
            stop,
            threads: vec![sending, receiving],
        })
    }

    /// What comes through in `time`, after a moment in which it settles.
    pub(super) fn measure(&self, time: Duration) -> Result<BulkFigures> {
        thread::sleep(SETTLING);
        let processes = processes(self.path)?;
        let before = (used(&processes)?, self.received.load(Ordering::Relaxed));
        let begin = Instant::now();
        thread::sleep(time);
        let elapsed = begin.elapsed();
        let bytes = self.received.load(Ordering::Relaxed) - before.1;
        let cpu = used(&processes)?.saturating_sub(before.0);
        ensure!(bytes > 0, "nothing came through {}", self.path.name);
        Ok(BulkFigures {
            megabits: bytes as f64 * 8e-6 / elapsed.as_secs_f64(),
            cpu: cpu.as_secs_f64() / (bytes as f64 * 1e-9),
        })
    }

    /// Ends it, and tells what went wrong with the connection.
    pub(super) fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("bulk TCP panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Bulk<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Whoever drops it does not want to know.
            let _ = thread.join();
        }
    }
}

/// What small datagrams gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct DatagramFigures {
    /// Thousands a second, as the far end received them.
    pub(super) thousands: f64,
    /// CPU time in the sender's system call, up to the tunnel's queue, in nanoseconds for each: that of the batch in the
    /// middle, because some pay for interrupts that are none of theirs.
    pub(super) sending: f64,
    /// Share of those sent that did not arrive, in percent.
    pub(super) lost: f64,
}

/// Datagrams of 64 bytes, no more than [`WINDOW`] of them on the way.
pub(super) fn datagrams(path: &Path, time: Duration) -> Result<DatagramFigures> {
    let far_end = path.peer.udp(SocketAddr::V4(SERVER))?;
    far_end.set_read_timeout(Some(Duration::from_millis(20)))?;
    let sender = path.client.udp(SocketAddr::from((CLIENT, 0)))?;
    sender.connect(SERVER)?;
    let arrivals = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let _pinned = Pinned::to(FAR);
            count(&far_end, &arrivals, &stop);
        });
        // The first ones find out how to get there.
        let outcome = Pinned::to(NEAR).and_then(|_pinned| {
            send_datagrams(&sender, &arrivals, SETTLING)?;
            send_datagrams(&sender, &arrivals, time)
        });
        stop.store(true, Ordering::Relaxed);
        counting
            .join()
            .map_err(|_| anyhow::anyhow!("receiving panicked"))?;
        let outcome = outcome?;
        ensure!(outcome.arrived > 0, "nothing came through {}", path.name);
        Ok(DatagramFigures {
            thousands: outcome.arrived as f64 * 1e-3 / outcome.elapsed.as_secs_f64(),
            sending: median(outcome.costs).context("no full batch was sent")?,
            lost: outcome.lost as f64 * 100.0 / outcome.tally.sent as f64,
        })
    })
}

/// Tunnels and daemons.
fn processes(path: &Path) -> Result<Vec<u32>> {
    let mut all = cpu::processes_in(&path.client)?;
    all.extend(cpu::processes_in(&path.peer)?);
    Ok(all)
}

/// What this process, which sends and receives, and others have used.
fn used(processes: &[u32]) -> Result<Duration> {
    let others: Duration = processes.iter().map(|pid| cpu::of(*pid)).sum();
    Ok(cpu::of_this_process()? + others)
}

fn send_bulk(mut stream: TcpStream, stop: &AtomicBool) -> Result<()> {
    let block = vec![0x5a; 128 * 1024];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&block)?;
    }
    Ok(())
}

fn receive_bulk(mut stream: TcpStream, received: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => received.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}

fn count(socket: &UdpSocket, received: &AtomicU64, stop: &AtomicBool) {
    let mut buffer = [0; 128];
    while !stop.load(Ordering::Relaxed) {
        // Whatever the error is, the sender sees that nothing arrives.
        if socket.recv(&mut buffer).is_ok() {
            received.fetch_add(1, Ordering::Release);
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Flow {
    tally: Tally,
    /// While it lasted.
    arrived: u64,
    lost: u64,
    /// Nanoseconds a datagram, of each full batch.
    costs: Vec<f64>,
    elapsed: Duration,
}

/// What has become of the datagrams of a flow, when so many have arrived.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: u64,
    /// Those that are no longer waited for.
    given_up: u64,
}

impl Tally {
    /// Those that may still arrive. What was given up and turns up later makes this less than it is.
    fn on_the_way(&self, arrived: u64) -> u64 {
        self.sent.saturating_sub(self.given_up + arrived)
    }

    fn give_up(&mut self, arrived: u64) {
        self.given_up += self.on_the_way(arrived);
    }

    /// Those that have not arrived, once nothing is waited for any more.
    fn lost(&self, arrived: u64) -> u64 {
        self.sent.saturating_sub(arrived)
    }
}

fn send_datagrams(socket: &UdpSocket, received: &AtomicU64, time: Duration) -> Result<Flow> {
    let mut batch = Batch::new();
    let start = received.load(Ordering::Acquire);
    let arrived = || received.load(Ordering::Acquire) - start;
    let mut flow = Flow::default();
    let begin = Instant::now();
    let mut progress = (0, begin);
    while begin.elapsed() < time {
        let here = arrived();
        if here > progress.0 {
            progress = (here, Instant::now());
        }
        if flow.tally.on_the_way(here) + Batch::LENGTH as u64 > WINDOW {
            if progress.1.elapsed() > LOST {
                flow.tally.give_up(here);
            } else {
                thread::sleep(Duration::from_micros(20));
            }
            continue;
        }
        let (count, cost) = batch.send(socket)?;
        flow.costs.extend(cost);
        flow.tally.sent += count as u64;
    }
    flow.elapsed = begin.elapsed();
    flow.arrived = arrived();
    // Those still on the way count for no rate, and are lost only if they never come.
    let deadline = Instant::now() + LOST;
    while flow.tally.on_the_way(arrived()) > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    flow.lost = flow.tally.lost(arrived());
    Ok(flow)
}

/// Datagrams of 64 bytes that leave in one system call.
pub(super) struct Batch {
    headers: MultiHeaders<SockaddrIn>,
}

impl Batch {
    /// How many they are.
    pub(super) const LENGTH: usize = 32;

    pub(super) fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(Self::LENGTH, None),
        }
    }

    /// Sends them by a connected socket; tells how many the kernel took and, where that was all, the CPU time that each took
    /// in the system call, in nanoseconds.
    pub(super) fn send(&mut self, socket: &UdpSocket) -> Result<(usize, Option<f64>)> {
        let payload = [0x5a; 64];
        let slices = [[IoSlice::new(&payload)]; Self::LENGTH];
        let before = cpu::of_this_thread()?;
        let results = sendmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            &slices,
            [None; Self::LENGTH],
            [],
            MsgFlags::empty(),
        );
        let count = match results {
            Ok(results) => results.count(),
            Err(nix::Error::ENOBUFS | nix::Error::EINTR) => 0,
            Err(error) => return Err(error).context("cannot send datagrams"),
        };
        let spent = cpu::of_this_thread()?.saturating_sub(before);
        let is_full = count == Self::LENGTH;
        let each = spent.as_secs_f64() * 1e9 / Self::LENGTH as f64;
        Ok((count, is_full.then_some(each)))
    }
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Of bulk TCP, in octets: more than any window.
const SEND_BUFFER: usize = 1 << 20;
/// Datagrams on the way at once, fewer than the queue of any device on it.
const WINDOW: u64 = 256;
/// When nothing has arrived for so long, what is on the way is lost.
const LOST: Duration = Duration::from_millis(100);
/// Before a turn: what has come or gone is no longer felt.
pub(super) const SETTLING: Duration = Duration::from_millis(150);
/// What a turn takes beside its time: waiting for what is on the way, threads, processes that are looked for.
pub(super) const LEFTOVERS: Duration = Duration::from_millis(50);
const STUCK: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_arrives_is_lost_though_the_window_was_never_full() {
        let tally = Tally {
            sent: 10_000,
            given_up: 0,
        };

        assert_eq!(tally.on_the_way(9_990), 10);
        assert_eq!(tally.lost(9_990), 10);
    }

    #[test]
    fn what_was_given_up_leaves_room_in_the_window_and_is_lost_only_if_it_never_comes() {
        let mut tally = Tally {
            sent: WINDOW,
            given_up: 0,
        };

        tally.give_up(100);
        assert_eq!(tally.on_the_way(100), 0);
        tally.sent += 32;

        assert_eq!(tally.on_the_way(110), 22);
        assert_eq!(tally.lost(110), WINDOW + 32 - 110);
        assert_eq!(tally.lost(tally.sent), 0);
    }
}
