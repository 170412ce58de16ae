package h2

import (
	"time"
)

// The payloads of our PINGs tell their answers apart.
var (
	keepalivePing = [8]byte{'a', 'm', 'b', 'i', 't', 'k', 'a', 1}
	shutdownPing  = [8]byte{'a', 'm', 'b', 'i', 't', 's', 'd', 1}
)

// maxStreamID is the highest number of a stream. In a GOAWAY it says that one with the real number follows (RFC 9113
// section 6.8).
const maxStreamID = 1<<31 - 1

// lingerTime is how long a connection is read on after this side has said everything, so that the peer's last words do not
// meet a closed socket, whose reset would destroy ours.
const lingerTime = 2 * time.Second

// shutdownState is how far an orderly end has come.
type shutdownState struct {
	begun     bool // this side wants to end
	final     bool // the last GOAWAY is out: streams after lastID are not served
	peerBegun bool // the peer sent GOAWAY
	peerCode  ErrCode
	timer     *time.Timer
}

// Shutdown ends the connection in an orderly way: no new streams are opened, a server serves those that are on their way
// (GOAWAY twice, with a PING between), and when the last has ended the connection closes. It returns at once; Done tells
// when the end has come.
func (c *Conn) Shutdown() {
	c.mu.Lock()
	if c.ended == nil && !c.shutdown.begun {
		c.shutdown.begun = true
		if c.server {
			c.mustFrame(c.send.framer.WriteGoAway(maxStreamID, NoError, nil))
			c.mustFrame(c.send.framer.WritePing(false, shutdownPing))
			c.kickAsyncLocked(false)
			wait := c.cfg.KeepaliveTimeout
			if wait <= 0 {
				wait = DefaultKeepaliveTimeout
			}
			c.shutdown.timer = time.AfterFunc(wait, c.secondGoAway)
		} else {
			c.finishIfIdleLocked()
		}
	}
	c.mu.Unlock()
	c.changed()
}

// secondGoAway is for a peer that does not answer the PING.
func (c *Conn) secondGoAway() {
	c.mu.Lock()
	c.secondGoAwayLocked()
	c.mu.Unlock()
}

// secondGoAwayLocked says which streams are served: all that came before the peer can have known of the shutdown.
func (c *Conn) secondGoAwayLocked() {
	if !c.server || !c.shutdown.begun || c.shutdown.final || c.ended != nil {
		return
	}
	c.shutdown.final = true
	c.shutdown.timer.Stop()
	c.mustFrame(c.send.framer.WriteGoAway(c.lastID, NoError, nil))
	c.kickAsyncLocked(false)
	c.finishIfIdleLocked()
}

// finishIfIdleLocked closes the connection if one side wants that and no stream is left.
func (c *Conn) finishIfIdleLocked() {
	over := c.shutdown.begun && (!c.server || c.shutdown.final) || c.shutdown.peerBegun && !c.server
	if !over || len(c.streams) > 0 || c.reserved > 0 || c.send.closing || c.ended != nil {
		return
	}
	if !c.server {
		c.mustFrame(c.send.framer.WriteGoAway(0, NoError, nil))
	}
	c.send.closing = true
	c.kickAsyncLocked(true)
}

// closeWriteLocked says that nothing more comes. The caller has the turn. It unlocks mu meanwhile.
func (c *Conn) closeWriteLocked() {
	c.send.closed = true
	c.linger = time.AfterFunc(lingerTime, c.t.Abort)
	c.mu.Unlock()
	err := c.t.CloseWrite()
	c.mu.Lock()
	if err != nil {
		c.t.Abort()
	}
}

// settingsLate ends a connection whose peer has not sent SETTINGS.
func (c *Conn) settingsLate() {
	c.mu.Lock()
	if !c.peer.seen {
		c.abortLocked(ErrSettingsTimeout)
	}
	c.mu.Unlock()
}

// keepaliveTick asks whether the peer lives if nothing was read since the last tick, and ends the connection if there was
// no sign of life since the question. Any byte is one: the answer may wait behind much payload.
func (c *Conn) keepaliveTick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended != nil || c.cause != nil:
	case c.writeStalledLocked(time.Now()):
		c.abortLocked(ErrWriteStalled)
	case c.recv.waiting:
		// It is this side that does not read. The peer is told that it lives.
		c.mustFrame(c.send.framer.WritePing(false, keepalivePing))
		c.kickAsyncLocked(false)
		c.keepalive.Reset(c.cfg.KeepaliveInterval)
	case c.heard.Swap(false):
		c.pinging = false
		c.keepalive.Reset(c.cfg.KeepaliveInterval)
	case !c.pinging:
		c.pinging = true
		c.mustFrame(c.send.framer.WritePing(false, keepalivePing))
		c.kickAsyncLocked(false)
		c.keepalive.Reset(c.cfg.KeepaliveTimeout)
	default:
		c.abortLocked(ErrKeepalive)
	}
}

// writeStalledLocked tells whether the same write has been under way for WriteTimeout. A peer that is heard of may still not
// read.
func (c *Conn) writeStalledLocked(now time.Time) bool {
	switch w := c.send.writes; {
	case w%2 == 0:
		c.stalled = stall{}
	case c.stalled.write != w:
		c.stalled = stall{w, now}
	default:
		return now.Sub(c.stalled.since) >= c.cfg.WriteTimeout
	}
	return false
}

// keepaliveAnsweredLocked goes back to waiting for silence.
func (c *Conn) keepaliveAnsweredLocked() {
	if c.pinging {
		c.pinging = false
		c.keepalive.Reset(c.cfg.KeepaliveInterval)
	}
}
