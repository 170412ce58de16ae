package h2

import (
	"fmt"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

const (
	// hardHeaderFactor times the limit of a header list is what we are ready to read and forget to save the connection. A
	// peer that sends more loses it.
	hardHeaderFactor = 4
	// hardExpansion times the limit is what a header list may expand to: fields from the compression table are a byte each.
	hardExpansion = 16
	// maxContinuations bounds the frames of one header block.
	maxContinuations = 64
)

// fieldCollector gathers one decoded header list, up to the limit.
type fieldCollector struct {
	limit   uint64
	size    uint64
	list    []Field
	regular bool   // a field that is no pseudo-header was seen
	invalid string // what is wrong with the first bad field
	expect  int    // how many fields the last list had
}

func (f *fieldCollector) reset() {
	*f = fieldCollector{limit: f.limit, expect: min(max(len(f.list), 4), maxExpect)}
}

// maxExpect bounds for how many fields there is room before they come: lists of a connection resemble each other.
const maxExpect = 32

// add is called by the HPACK decoder.
func (f *fieldCollector) add(field Field) {
	f.size += uint64(field.Size())
	if f.size > f.limit || f.invalid != "" {
		f.list = nil
		return
	}
	pseudo := strings.HasPrefix(field.Name, ":")
	switch {
	case !pseudo && !validName(field.Name):
		f.invalid = fmt.Sprintf("field name %q", field.Name)
	case !httpguts.ValidHeaderFieldValue(field.Value):
		f.invalid = fmt.Sprintf("value of field %q", field.Name)
	case pseudo && f.regular:
		f.invalid = fmt.Sprintf("pseudo-field %q after a regular one", field.Name)
	case !pseudo && connectionSpecific(field):
		f.invalid = fmt.Sprintf("connection-specific field %q", field.Name)
	}
	f.regular = f.regular || !pseudo
	if f.list == nil {
		f.list = make([]Field, 0, f.expect)
	}
	f.list = append(f.list, field)
}

// validName tells whether a name is a token in lower case (RFC 9113 section 8.2.1).
func validName(name string) bool {
	if name == "" {
		return false
	}
	for i := range len(name) {
		b := name[i]
		if 'A' <= b && b <= 'Z' || !httpguts.IsTokenRune(rune(b)) {
			return false
		}
	}
	return true
}

// connectionSpecific tells whether a field has no place in HTTP/2 (RFC 9113 section 8.2.2).
func connectionSpecific(f Field) bool {
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	case "te":
		return f.Value != "trailers"
	}
	return false
}

// Value returns the value of the first field of that name in a header block, and whether there is one.
func Value(fields []Field, name string) (string, bool) {
	for i := range fields {
		if fields[i].Name == name {
			return fields[i].Value, true
		}
	}
	return "", false
}

// checkRequest returns what is wrong with the pseudo-fields of a request, or "" (RFC 9113 sections 8.3.1 and 8.5).
func checkRequest(fields []Field) string {
	var method, scheme, path, authority, protocol string
	for _, f := range fields {
		if !strings.HasPrefix(f.Name, ":") {
			break
		}
		var to *string
		switch f.Name {
		case ":method":
			to = &method
		case ":scheme":
			to = &scheme
		case ":path":
			to = &path
		case ":authority":
			to = &authority
		case ":protocol":
			to = &protocol
		default:
			return fmt.Sprintf("pseudo-field %q in a request", f.Name)
		}
		if *to != "" || f.Value == "" && f.Name != ":authority" {
			return fmt.Sprintf("pseudo-field %q is empty or there twice", f.Name)
		}
		*to = f.Value
	}
	switch {
	case method == "":
		return "no :method"
	case method == "CONNECT" && protocol == "":
		if scheme != "" || path != "" || authority == "" {
			return "CONNECT has an :authority and neither :scheme nor :path"
		}
	case scheme == "" || path == "":
		return "no :scheme or no :path"
	}
	return ""
}

// checkResponse returns the status of a response's header, or what is wrong with it.
func checkResponse(fields []Field) (status int, wrong string) {
	n := 0
	for _, f := range fields {
		if !strings.HasPrefix(f.Name, ":") {
			break
		}
		if f.Name != ":status" || len(f.Value) != 3 {
			return 0, fmt.Sprintf("pseudo-field %q in a response", f.Name)
		}
		for i := range 3 {
			d := f.Value[i]
			if d < '0' || d > '9' {
				return 0, ":status is no number"
			}
			status = status*10 + int(d-'0')
		}
		n++
	}
	if n != 1 || status < 100 {
		return 0, "no :status, or several"
	}
	return status, ""
}

// onHeaders handles HEADERS and the CONTINUATION frames that follow it.
func (c *Conn) onHeaders(h http2.FrameHeader) error {
	if h.StreamID == 0 {
		return violated(ProtocolError, "HEADERS on stream 0")
	}
	if err := c.rd.readBlock(h); err != nil {
		return err
	}
	end := h.Flags.Has(http2.FlagHeadersEndStream)
	c.mu.Lock()
	s := c.streams[h.StreamID]
	idle := c.idleLocked(h.StreamID)
	c.mu.Unlock()
	switch {
	case s != nil:
		return c.onMoreHeaders(s, end)
	case !idle:
		return c.onEnded(h.StreamID, true)
	case !c.server || c.isOwn(h.StreamID):
		return violated(ProtocolError, "HEADERS on a stream that the peer may not open")
	}
	return c.onRequest(h.StreamID, end)
}

// readBlock reads a header block into fields. However large it is, the compression state stays right.
func (r *reader) readBlock(h http2.FrameHeader) error {
	hard := hardHeaderFactor * int(r.c.cfg.MaxHeaderList)
	r.fields.reset()
	total := 0
	for n := 0; ; n++ {
		if total += int(h.Length); total > hard || n > maxContinuations {
			return &violation{EnhanceYourCalm, CauseHeaderBlock, "a header block is far larger than the limit"}
		}
		f, err := r.framer.ReadFrame()
		if err != nil {
			return frameError(err)
		}
		var block []byte
		var last bool
		switch f := f.(type) {
		case *http2.HeadersFrame:
			block, last = f.HeaderBlockFragment(), f.HeadersEnded()
			if f.HasPriority() && f.Priority.StreamDep == h.StreamID {
				r.fields.invalid = "the stream depends on itself"
			}
		case *http2.ContinuationFrame:
			block, last = f.HeaderBlockFragment(), f.HeadersEnded()
		}
		if _, err := r.dec.Write(block); err != nil {
			return violated(CompressionError, err.Error())
		}
		if r.fields.size > hardExpansion*uint64(r.c.cfg.MaxHeaderList) {
			return &violation{EnhanceYourCalm, CauseHeaderBlock, "a header block expands to far more than the limit"}
		}
		if last {
			break
		}
		next, err := r.header()
		if err != nil {
			return err
		}
		if next.Type != http2.FrameContinuation || next.StreamID != h.StreamID {
			return violated(ProtocolError, "a header block is interrupted")
		}
		h = next
	}
	if err := r.dec.Close(); err != nil {
		return violated(CompressionError, err.Error())
	}
	return nil
}

// tooLarge tells whether the header list that was read is over the limit.
func (f *fieldCollector) tooLarge() bool { return f.size > f.limit }

// onRequest opens a stream of the peer, or refuses it.
func (c *Conn) onRequest(id uint32, end bool) error {
	f := &c.rd.fields
	wrong := f.invalid
	if wrong == "" && !f.tooLarge() {
		wrong = checkRequest(f.list)
	}
	c.mu.Lock()
	c.closed.opened(id, c.seenID)
	c.seenID = id
	if c.shutdown.final {
		// The peer learns from the GOAWAY that this one is not served.
		c.closed.add(id, false)
		c.mu.Unlock()
		return c.rd.meter.count(floodRefused)
	}
	c.lastID = id
	c.rd.meter.streams++
	open := len(c.streams) - c.own
	kind := floodRefused
	switch {
	case f.tooLarge():
		c.refuseLocked(id, end)
		c.appendHeadersLocked(id, []Field{{Name: ":status", Value: "431"}}, true)
		if !end {
			c.mustFrame(c.send.framer.WriteRSTStream(id, NoError))
		}
	case wrong != "":
		kind = floodFault
		c.refuseLocked(id, end)
		c.mustFrame(c.send.framer.WriteRSTStream(id, ProtocolError))
	case open >= int(c.cfg.MaxStreams) || c.handlers >= 2*int(c.cfg.MaxStreams):
		if open < int(c.cfg.MaxStreams) {
			kind = floodReset // streams are reset faster than their handlers can end
		}
		c.refuseLocked(id, end)
		c.mustFrame(c.send.framer.WriteRSTStream(id, RefusedStream))
	default:
		s := c.newStreamLocked(id)
		s.headed = true
		s.blocks = append(s.firstBlock[:0], f.list)
		s.remoteEnd, s.recvEnd = end, end
		c.handlers++
		c.wg.Add(1)
		c.cfg.Go(func() {
			defer c.wg.Done()
			c.serve(s)
		})
		c.mu.Unlock()
		return nil
	}
	c.kickAsyncLocked(false)
	c.mu.Unlock()
	return c.rd.meter.count(kind)
}

// refuseLocked remembers that a stream of the peer is reset from the start.
func (c *Conn) refuseLocked(id uint32, end bool) {
	if !end {
		c.closed.add(id, false)
	}
}

// serve runs the handler of a stream.
func (c *Conn) serve(s *Stream) {
	defer func() {
		if !s.Detached() {
			s.Close()
		}
		c.mu.Lock()
		c.handlers--
		c.mu.Unlock()
	}()
	c.handle(s)
}

// onMoreHeaders handles a header block on an open stream: a response's header or trailers.
func (c *Conn) onMoreHeaders(s *Stream, end bool) error {
	f := &c.rd.fields
	first := !s.headed
	wrong := f.invalid
	final := true
	c.mu.Lock()
	late := s.remoteEnd
	c.mu.Unlock()
	if late {
		return c.rd.fault(s, StreamClosed, "HEADERS after the end")
	}
	switch {
	case f.tooLarge():
		return c.rd.fault(s, Cancel, fmt.Sprintf("header list is larger than %d bytes", f.limit))
	case wrong != "":
	case first:
		status, w := checkResponse(f.list)
		wrong = w
		final = status >= 200
		if wrong == "" && !final && end {
			wrong = "the stream ends with an informational response"
		}
		if status == 101 {
			wrong = "status 101"
		}
	case !end:
		wrong = "trailers do not end the stream"
	case len(f.list) > 0 && strings.HasPrefix(f.list[0].Name, ":"):
		wrong = "pseudo-field in trailers"
	}
	if wrong != "" {
		return c.rd.fault(s, ProtocolError, wrong)
	}
	if !final {
		if err := c.rd.meter.count(floodInformation); err != nil {
			return err
		}
	}

	c.mu.Lock()
	removed := false
	if first {
		s.headed = final
	}
	if end {
		removed = c.endRemoteLocked(s)
	}
	c.mu.Unlock()
	s.takeHeaders(f.list, first, end)
	if removed {
		c.changed()
	}
	return nil
}
