package h2

import (
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/net/http2"
)

// onFrame handles a frame that is not DATA. Its header has not been taken.
func (c *Conn) onFrame(h http2.FrameHeader) error {
	r := &c.rd
	switch h.Type {
	case http2.FrameHeaders:
		return c.onHeaders(h)
	case http2.FrameSettings, http2.FramePing, http2.FrameGoAway, http2.FrameWindowUpdate, http2.FrameRSTStream:
		if h.Length > maxControlFrame {
			return violated(FrameSizeError, fmt.Sprintf("a %v frame is too large", h.Type))
		}
	case http2.FramePushPromise:
		return violated(ProtocolError, "PUSH_PROMISE, which is off")
	case http2.FrameContinuation:
		return violated(ProtocolError, "CONTINUATION without HEADERS")
	case http2.FramePriority:
		if h.StreamID == 0 {
			return violated(ProtocolError, "PRIORITY on stream 0")
		}
		if h.Length != priorityLength {
			return violated(FrameSizeError, "a PRIORITY frame of a wrong size")
		}
		return c.onPriority(h)
	default: // types that we do not know are ignored (RFC 9113 section 5.5)
		return r.ignore(h)
	}
	f, err := r.framer.ReadFrame()
	if err != nil {
		return frameError(err)
	}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return c.onSettings(f)
	case *http2.PingFrame:
		return c.onPing(f)
	case *http2.GoAwayFrame:
		return c.onGoAway(f)
	case *http2.WindowUpdateFrame:
		return c.onWindowUpdate(f)
	case *http2.RSTStreamFrame:
		return c.onReset(f)
	}
	return nil
}

// priorityLength is the length of a PRIORITY frame (RFC 9113 section 6.3). What it says is ignored (section 5.3.2), unless it
// is nonsense.
const priorityLength = 5

// onPriority handles PRIORITY.
func (c *Conn) onPriority(h http2.FrameHeader) error {
	r := &c.rd
	if err := r.need(Headroom + priorityLength); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(r.buf[r.r+Headroom:])&(1<<31-1) == h.StreamID {
		return violated(ProtocolError, "a stream depends on itself")
	}
	return r.ignore(h)
}

// ignore skips a frame.
func (r *reader) ignore(h http2.FrameHeader) error {
	if err := r.meter.count(floodUnknown); err != nil {
		return err
	}
	return r.skip(Headroom + int(h.Length))
}

// frameError makes the Framer's errors ours.
func frameError(err error) error {
	switch err := err.(type) {
	case http2.ConnectionError:
		return violated(ErrCode(err), "malformed frame")
	case http2.StreamError:
		return violated(err.Code, "malformed frame on a stream")
	}
	if err == http2.ErrFrameTooLarge {
		return violated(FrameSizeError, "a frame is too large")
	}
	return err
}

// onSettings applies the peer's SETTINGS and acknowledges them.
func (c *Conn) onSettings(f *http2.SettingsFrame) error {
	if err := c.rd.meter.count(floodSettings); err != nil || f.IsAck() {
		return err
	}
	if f.NumSettings() > maxSettings {
		return &violation{EnhanceYourCalm, CauseSettings, fmt.Sprintf("SETTINGS with more than %d entries", maxSettings)}
	}
	c.mu.Lock()
	err := f.ForeachSetting(c.applySettingLocked)
	if err == nil {
		if !c.peer.seen && c.settings != nil {
			c.settings.Stop()
		}
		c.peer.seen = true
		c.mustFrame(c.send.framer.WriteSettingsAck())
		c.kickAsyncLocked(false)
	}
	c.mu.Unlock()
	c.changed()
	return err
}

func (c *Conn) applySettingLocked(s http2.Setting) error {
	if err := s.Valid(); err != nil {
		return frameError(err)
	}
	switch s.ID {
	case http2.SettingHeaderTableSize:
		c.send.enc.SetMaxDynamicTableSizeLimit(min(s.Val, 4096))
	case http2.SettingMaxConcurrentStreams:
		c.peer.maxStreams = s.Val
	case http2.SettingMaxFrameSize:
		c.peer.maxFrame = s.Val
	case http2.SettingMaxHeaderListSize:
		c.peer.maxHeaderList = s.Val
	case http2.SettingInitialWindowSize:
		delta := int64(s.Val) - c.peer.window
		c.peer.window = int64(s.Val)
		for _, st := range c.streams {
			st.sendWindow += delta
			if st.sendWindow > math.MaxInt32 {
				return violated(FlowControlError, "SETTINGS make a stream's window too large")
			}
			if delta > 0 {
				st.wcond.Broadcast()
			}
		}
	}
	return nil
}

// onPing answers, or notes an answer.
func (c *Conn) onPing(f *http2.PingFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ours := f.IsAck() && (f.Data == keepalivePing && c.pinging || f.Data == shutdownPing)
	if !ours {
		if err := c.rd.meter.count(floodPing); err != nil {
			return err
		}
	}
	switch {
	case !f.IsAck():
		c.mustFrame(c.send.framer.WritePing(true, f.Data))
		c.kickAsyncLocked(false)
	case f.Data == keepalivePing:
		c.keepaliveAnsweredLocked()
	case f.Data == shutdownPing:
		c.secondGoAwayLocked()
	}
	return nil
}

// onWindowUpdate lets writers go on.
func (c *Conn) onWindowUpdate(f *http2.WindowUpdateFrame) error {
	if f.Increment < tinyWindow {
		if err := c.rd.meter.count(floodTinyWindow); err != nil {
			return err
		}
	}
	c.mu.Lock()
	if f.StreamID == 0 {
		defer c.mu.Unlock()
		c.send.window += int64(f.Increment)
		if c.send.window > math.MaxInt32 {
			return violated(FlowControlError, "the connection's window is too large")
		}
		c.wakeWindowLocked()
		return nil
	}
	s := c.streams[f.StreamID]
	if s == nil {
		defer c.mu.Unlock()
		if c.idleLocked(f.StreamID) {
			return violated(ProtocolError, "WINDOW_UPDATE on a stream that was never opened")
		}
		return c.rd.meter.count(floodEnded)
	}
	s.sendWindow += int64(f.Increment)
	overflow := s.sendWindow > math.MaxInt32
	s.wcond.Broadcast()
	c.mu.Unlock()
	if overflow {
		return c.rd.fault(s, FlowControlError, "the stream's window is too large")
	}
	return nil
}

// onReset ends a stream that the peer has reset.
func (c *Conn) onReset(f *http2.RSTStreamFrame) error {
	c.mu.Lock()
	s := c.streams[f.StreamID]
	if s == nil {
		defer c.mu.Unlock()
		if c.idleLocked(f.StreamID) {
			return violated(ProtocolError, "RST_STREAM on a stream that was never opened")
		}
		return c.rd.meter.count(floodEnded)
	}
	unanswered := c.server && !s.answered
	err := &StreamError{Code: f.ErrCode, Remote: true}
	s.werr = err
	s.wcond.Broadcast()
	c.removeLocked(s)
	if c.server {
		c.closed.add(s.id, true)
	}
	c.mu.Unlock()
	s.endRead(err)
	c.changed()
	if unanswered {
		return c.rd.meter.count(floodReset)
	}
	return nil
}

// onGoAway notes that the peer takes no more streams, and ends those that it has not looked at.
func (c *Conn) onGoAway(f *http2.GoAwayFrame) error {
	if err := c.rd.meter.count(floodGoAway); err != nil {
		return err
	}
	var unprocessed []*Stream
	err := &StreamError{Code: RefusedStream, Remote: true, Reason: "the peer is shutting down"}
	c.mu.Lock()
	c.shutdown.peerBegun = true
	c.shutdown.peerCode = f.ErrCode
	for id, s := range c.streams {
		if c.isOwn(id) && id > f.LastStreamID {
			s.werr = err
			s.wcond.Broadcast()
			unprocessed = append(unprocessed, s)
		}
	}
	for _, s := range unprocessed {
		c.removeLocked(s)
	}
	c.finishIfIdleLocked()
	c.mu.Unlock()
	for _, s := range unprocessed {
		s.endRead(err)
	}
	c.changed()
	return nil
}
