package h2

// maxClosed is how many streams that were reset are remembered, so that what a peer had on its way when it learned of that is told
// apart from what it must not send.
const maxClosed = 256

// closed remembers streams of the peer that did not end by both sides' END_STREAM. A frame on any other stream that is over is
// the peer's fault.
type closed struct {
	recent  []closedStream            // the latest, in a ring
	next    int                       // in recent, once that is full
	forgot  uint32                    // the highest number that was there and is not any more
	skipped struct{ from, to uint32 } // the latest numbers that the peer passed over
}

// closedStream is a stream that was reset.
type closedStream struct {
	id     uint32
	byPeer bool
}

// add remembers a stream.
func (c *closed) add(id uint32, byPeer bool) {
	s := closedStream{id, byPeer}
	if len(c.recent) < maxClosed {
		c.recent = append(c.recent, s)
		return
	}
	c.forgot = max(c.forgot, c.recent[c.next].id)
	c.recent[c.next] = s
	c.next = (c.next + 1) % maxClosed
}

// opened notes that a stream was opened after last, the latest before it.
func (c *closed) opened(id, last uint32) {
	if id > last+2 && last > 0 {
		c.skipped.from, c.skipped.to = last+2, id-2
	}
}

// judge says what follows from DATA or HEADERS on a stream of the peer that is over (RFC 9113 section 5.1): a violation for which the
// connection ends; or that the peer's stream is reset again; or nothing, since it may have been on its way.
func (c *closed) judge(id uint32) (again bool, err error) {
	for _, s := range c.recent {
		if s.id == id {
			return s.byPeer, nil
		}
	}
	switch {
	case id <= c.forgot:
		return false, nil
	case c.skipped.from <= id && id <= c.skipped.to:
		return false, violated(ProtocolError, "a stream is opened whose number is lower than another's")
	}
	return false, violated(StreamClosed, "a frame on a stream that the peer has ended")
}

// onEnded handles DATA or HEADERS on a stream that is over. What cost the peer nothing is counted.
func (c *Conn) onEnded(id uint32, cheap bool) error {
	if c.server && !c.isOwn(id) {
		c.mu.Lock()
		again, err := c.closed.judge(id)
		if again {
			c.mustFrame(c.send.framer.WriteRSTStream(id, StreamClosed))
			c.kickAsyncLocked(false)
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if !cheap {
		return nil
	}
	return c.rd.meter.count(floodEnded)
}
