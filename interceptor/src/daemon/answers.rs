//! Hands answers in memory on to the kernel, so that it gives them itself.

use std::sync::Arc;
use std::time::Duration;

use interceptor_ebpf::answer::{MAX_RECORDS, Parts};
use interceptor_ebpf::question::Key;
use nix::time::{ClockId, clock_gettime};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::dns::cache::Entry;
use crate::dns::clock::Moment;
use crate::dns::{self, AnswerSink};
use crate::kernel::answers::{Answers, boot_clock};
use crate::rules::ANSWERS_POLICY;

/// Nanoseconds of a millisecond.
const MILLISECOND: u64 = 1_000_000;

/// How often it is looked at what the kernel has given, at most.
const LOOK: Duration = Duration::from_millis(500);

/// Looking takes no more than one part in so many of a processor's time.
const SHARE: u32 = 100;

/// The kernel's answers as the DNS service knows them.
pub(super) struct KernelAnswers(pub(super) Arc<Answers>);

impl AnswerSink for KernelAnswers {
    fn offer(&self, entry: &Entry) {
        let renewal = nanoseconds(entry.renewal());
        // In the last tenth of its lifetime it is about to be replaced, and one that the kernel has would lose what it
        // has counted.
        if boot_clock() >= renewal {
            return;
        }
        let Some(key) = kernel_key(entry) else {
            return;
        };
        if entry.ttl_offsets().len() > MAX_RECORDS {
            return;
        }
        let ttls: Vec<usize> = entry.ttl_offsets().map(usize::from).collect();
        let parts = Parts {
            flags: entry.flags().0,
            counts: entry.counts(),
            body: entry.body(),
            ttls: &ttls,
            stored: nanoseconds(entry.stored()),
            renewal,
            expires: nanoseconds(entry.expires()),
        };
        let Self(answers) = self;
        if let Err(error) = answers.offer(answers.edition(), &key, &parts) {
            warn!("{error:#}");
        }
    }

    fn given(&self, entry: &Entry) -> u32 {
        let Self(answers) = self;
        let hits = kernel_key(entry).and_then(|key| answers.hits(&key));
        u32::try_from(hits.unwrap_or(0)).unwrap_or(u32::MAX)
    }

    fn forget_all(&self) {
        let Self(answers) = self;
        if let Err(error) = answers.forget_all() {
            warn!("{error:#}");
        }
    }
}

/// Tells `dns` over and over which answers the kernel has given: it sees nothing of their clients, and would have others
/// take their room in memory, so that whoever asks when they are to be renewed had to wait.
pub(super) async fn follow_uses(answers: Arc<Answers>, dns: Arc<dns::Server>) {
    let stop = CancellationToken::new();
    // Nothing else ends a look that has begun, and the end of the daemon waits for it.
    let _stop = stop.clone().drop_guard();
    let mut known = 0;
    let mut pause = LOOK;
    loop {
        sleep(pause).await;
        pause = LOOK;
        let answered = answers.answered().unwrap_or_default();
        if answered == known {
            continue;
        }
        known = answered;
        let (answers, dns) = (Arc::clone(&answers), Arc::clone(&dns));
        let stop = stop.clone();
        let looking = spawn_blocking(move || {
            let began = processor_time();
            let goes_on = || !stop.is_cancelled();
            answers.given(goes_on, |it| {
                dns.note_given(&it.question, it.dnssec_ok, it.checking_disabled, it.times);
            });
            processor_time().saturating_sub(began)
        });
        if let Ok(took) = looking.await {
            pause = LOOK.max(took * SHARE);
        }
    }
}

/// What this thread has used of processors' time: where they are busy, looking takes long and yet costs no more.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What the kernel would keep an answer under. Which route it is by does not matter: the name decides that, and other
/// routes make all that the kernel has unusable.
pub(super) fn kernel_key(entry: &Entry) -> Option<Key> {
    let key = entry.key();
    let (dnssec_ok, checking_disabled) = (key.is_dnssec_ok(), key.is_checking_disabled());
    Key::of_question(key.question(), ANSWERS_POLICY, dnssec_ok, checking_disabled)
}

fn nanoseconds(moment: Moment) -> u64 {
    moment.millis().saturating_mul(MILLISECOND)
}
