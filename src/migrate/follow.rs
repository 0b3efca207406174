use super::Space;
use crate::ports::{FollowCount, Host, HostError, Mirrored, Vma};
use crate::sync::{Rule, holds};

/// Follows a mapping that was looked up after `looked` was read. Inside the gate. [`Mirrored::FromNow`] unless it was
/// followed all the while: then what was seen of it may be out of date without an event to tell.
///
/// # Errors
/// Those of [`Host::mirror`].
pub(crate) fn follow<H: Host>(
    space: &Space<'_, H>,
    vma: &Vma,
    looked: FollowCount,
) -> Result<Mirrored, HostError> {
    let was = space.host.mirror(vma.range.intersection(space.host.window()))?;
    if !holds(Rule::LookAgain) {
        return Ok(Mirrored::Already);
    }
    // Another thread may have followed a mapping that came after the one that was seen: an address whose munmap gave
    // no event.
    let is_followed = was == Mirrored::Already
        && (space.host.follow_count() == looked || !holds(Rule::LookAgainIfAnotherFollows));
    Ok(if is_followed { Mirrored::Already } else { Mirrored::FromNow })
}
