//! The connections of each user in Redis: a hash for each user with a field for each node, which
//! holds that node's count and its version. A late write does not undo a newer one.

use std::sync::LazyLock;

use redis::Script;
use uuid::Uuid;

use super::{BACKGROUND_TIMEOUT, KEY_TTL, SharedCounters};

/// The connections of one user on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCount {
    pub user: String,
    pub connections: u32,
    /// The version, which grows with every change of any count of this node.
    pub version: u64,
}

/// The result of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimResult {
    /// The connection is within the limit, and the new count is written.
    Accepted,
    /// The limit would be exceeded, by what is known of other nodes.
    LimitExceeded,
}

/// Writes the node's field unless a newer version is there; a count of 0 removes it.
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

/// Fields of dead nodes expire with the hash, or are removed when they are many.
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

static CLAIM_SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(&format!("{WRITE}{CLAIM}")));
static WRITE_SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::new(&format!("{WRITE} write(node, count, change, kept)")));

impl SharedCounters {
    /// Writes a count that includes a new connection, if it and those of `others` are within `limit`.
    /// `None`: the counts of the others are not known now.
    pub async fn claim(&self, count: &UserCount, limit: u32, others: &[Uuid]) -> Option<ClaimResult> {
        let shared = self.0.as_ref()?;
        let mut claim = CLAIM_SCRIPT.key(shared.name("user", &count.user));
        claim
            .arg(&shared.node)
            .arg(count.connections)
            .arg(count.version)
            .arg(KEY_TTL.as_millis() as u64)
            .arg(limit);
        others.iter().for_each(|other| _ = claim.arg(other.to_string()));
        let fits =
            shared.query(shared.timeouts.connection, async |conn| claim.invoke_async(conn).await).await;
        shared.count(fits.is_some());
        fits.map(|fits: bool| if fits { ClaimResult::Accepted } else { ClaimResult::LimitExceeded })
    }

    /// Writes counts; `false` if Redis is down.
    pub async fn write(&self, counts: &[UserCount]) -> bool {
        let Some(shared) = &self.0 else { return true };
        let written = shared.query(BACKGROUND_TIMEOUT, async |conn| {
            WRITE_SCRIPT.load_async(conn).await?;
            let mut writes = redis::pipe();
            for count in counts {
                let mut write = WRITE_SCRIPT.key(shared.name("user", &count.user));
                write
                    .arg(&shared.node)
                    .arg(count.connections)
                    .arg(count.version)
                    .arg(KEY_TTL.as_millis() as u64);
                writes.invoke_script(&write).ignore();
            }
            writes.exec_async(conn).await
        });
        written.await.is_some()
    }
}
