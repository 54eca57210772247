//! The connections of each user in Redis: a hash for each user, a field for each node, in it what
//! that node counts and the number of the change that made it so. What comes late does not undo
//! what is newer.

use std::sync::LazyLock;

use redis::Script;
use uuid::Uuid;

use super::{Counts, KEPT, WHILE};

/// What this node counts of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Whose connections.
    pub user: String,
    /// How many.
    pub count: u32,
    /// Grows with every change of any count of this node.
    pub change: u64,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// It fits, and the others know of it.
    Fits,
    /// As far as is known it is too much: other nodes have something.
    TooMuch,
}

/// Writes the own field unless it is newer; no connection needs no field.
const WRITE: &str = "
    local function write(node, count, change, kept)
        local known = redis.call('HGET', KEYS[1], node)
        if known and tonumber(string.match(known, ':(%d+)')) > change then return end
        if count == 0 then
            redis.call('HDEL', KEYS[1], node)
        else
            redis.call('HSET', KEYS[1], node, string.format('%d:%.0f', count, change))
            redis.call('PEXPIRE', KEYS[1], kept)
        end
    end
    local node, count, change, kept = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]";

/// Fields of nodes that are gone go with the hash, or when they are many.
const CLAIM: &str = "
    local limit, sum = tonumber(ARGV[5]), count
    local alive = {[node] = true}
    for i = 6, #ARGV do
        alive[ARGV[i]] = true
        local other = redis.call('HGET', KEYS[1], ARGV[i])
        if other then sum = sum + tonumber(string.match(other, '^%d+')) end
    end
    if sum > limit then return 0 end
    write(node, count, change, kept)
    if redis.call('HLEN', KEYS[1]) > #ARGV + 16 then
        for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
            if not alive[field] then redis.call('HDEL', KEYS[1], field) end
        end
    end
    return 1";

static CLAIMING: LazyLock<Script> = LazyLock::new(|| Script::new(&format!("{WRITE}{CLAIM}")));
static WRITING: LazyLock<Script> =
    LazyLock::new(|| Script::new(&format!("{WRITE} write(node, count, change, kept)")));

impl Counts {
    /// Writes a count that has one more, if that and what `others` have are within `limit`. `None`:
    /// nobody knows now what the others have.
    pub async fn claim(&self, tally: &Tally, limit: u32, others: &[Uuid]) -> Option<Claimed> {
        let shared = self.0.as_ref()?;
        let mut claim = CLAIMING.key(shared.name("user", &tally.user));
        claim.arg(&shared.node).arg(tally.count).arg(tally.change).arg(KEPT.as_millis() as u64).arg(limit);
        others.iter().for_each(|other| _ = claim.arg(other.to_string()));
        let fits = shared.ask(shared.patience.place, async |conn| claim.invoke_async(conn).await).await;
        shared.count(if fits.is_some() { "shared" } else { "alone" });
        fits.map(|fits: bool| if fits { Claimed::Fits } else { Claimed::TooMuch })
    }

    /// Writes counts; `false` if Redis is away.
    pub async fn write(&self, tallies: &[Tally]) -> bool {
        let Some(shared) = &self.0 else { return true };
        let written = shared.ask(WHILE, async |conn| {
            WRITING.load_async(conn).await?;
            let mut writes = redis::pipe();
            for tally in tallies {
                let mut write = WRITING.key(shared.name("user", &tally.user));
                write.arg(&shared.node).arg(tally.count).arg(tally.change).arg(KEPT.as_millis() as u64);
                writes.invoke_script(&write).ignore();
            }
            writes.exec_async(conn).await
        });
        written.await.is_some()
    }
}
