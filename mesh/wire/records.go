package wire

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Content types of records, and types of messages after the handshake (RFC 8446 sections 5.1 and 4).
const (
	typeAlert       = 21
	typeHandshake   = 22
	typeApplication = 23

	messageSessionTicket = 4
	messageKeyUpdate     = 24
	messageHeader        = 4
)

const (
	// overhead is how many bytes a record has more than what is in it: header, content type, tag.
	overhead = recordHeader + 1 + tagSize
	// recordVersion is in each record's header (RFC 8446 section 5.1).
	recordVersion = tls.VersionTLS12
	// maxUseless is how many records in a row may bring no payload, as in crypto/tls.
	maxUseless = 16
	// maxMessage is the length of a message after the handshake.
	maxMessage = 1 << 16
)

// records are the records of TLS 1.3 after the handshake. Payload is sealed from where it is to what waits in the socket to be
// sent, and opened from what the socket has read to where the reader wants it: it is copied nowhere else.
//
// Like Conn it has one reader and one writer. The reader writes too: alerts.
type records struct {
	sock   *socket
	client bool // this side is the client

	// Of the reader.
	in      keys
	plain   []byte // opened and not read yet: a part of sock.in, which is not released meanwhile
	err     error  // what ended reading
	useless int    // records in a row without payload
	message message

	// Guarded by sock.mu.
	out     keys
	maxSeq  uint64 // after which out is updated
	asked   bool   // the peer wants out updated, before the next payload
	ended   bool   // no record may follow: close_notify or a fatal alert was sent
	endedBy error
}

// message is what is known of a message after the handshake that has begun.
type message struct {
	header [messageHeader]byte
	n      int // bytes of header
	left   int // bytes that come yet, once the header is whole
}

// newRecords takes the secrets over. Nothing may have been sent or opened with their keys.
func newRecords(sock *socket, client bool, s *suite, sec *secrets) (*records, error) {
	c := &records{sock: sock, client: client, maxSeq: maxRecordsPerKey}
	read, write := sec.client, sec.server
	if client {
		read, write = write, read
	}
	sec.client, sec.server = nil, nil
	var err, werr error
	c.in, err = newKeys(s, read)
	c.out, werr = newKeys(s, write)
	if err := errors.Join(err, werr); err != nil {
		return nil, err
	}
	return c, nil
}

// wipe forgets the keys. Nothing else may come after it.
func (c *records) wipe() {
	c.in.wipe()
	c.sock.mu.Lock()
	c.out.wipe()
	if !c.ended {
		c.ended, c.endedBy = true, net.ErrClosed
	}
	c.sock.mu.Unlock()
	c.plain = nil
	if c.err == nil {
		c.err = net.ErrClosed
	}
}

// Read is as in io.Reader. It returns the payload of all whole records that have come and for which p has room.
func (c *records) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n := c.takePlain(p)
	for c.err == nil && n < len(p) && (n == 0 || c.sock.recordReady()) {
		k, whole, err := c.open(p[n:], n > 0)
		n += k
		if err != nil {
			c.err = err
		}
		if !whole {
			break
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, c.err
}

func (c *records) waitReadable() error {
	switch {
	case len(c.plain) > 0:
		return nil
	case c.err != nil:
		return c.err
	}
	return c.sock.cut(c.sock.waitReadable())
}

func (c *records) buffered() int { return len(c.plain) + c.sock.buffered() }

// takePlain copies what was opened before.
func (c *records) takePlain(p []byte) int {
	if len(c.plain) == 0 {
		return 0
	}
	n := copy(p, c.plain)
	if c.plain = c.plain[n:]; len(c.plain) == 0 {
		c.plain = nil
		c.sock.release()
	}
	return n
}

// open waits for a record and opens it, into p if there is room for all of it; else, or where it is not payload, in the socket's
// buffer. It returns how many bytes it has put into p. With fit it does nothing, and returns whole as false, where there is not
// room.
func (c *records) open(p []byte, fit bool) (n int, whole bool, err error) {
	s := c.sock
	for !s.recordReady() {
		if err := s.flushOwed(); err != nil {
			return 0, true, err
		}
		if err := s.fill(); err != nil {
			return 0, true, s.cut(err)
		}
	}
	header := s.in[s.r : s.r+recordHeader]
	size := int(binary.BigEndian.Uint16(header[3:]))
	if alert, ok := checkHeader(header, size); !ok {
		return 0, true, c.fail(alert)
	}
	sealed := s.in[s.r+recordHeader : s.r+recordHeader+size]
	to := p
	direct := size-tagSize <= len(p)
	if !direct {
		if fit {
			return 0, false, nil
		}
		to = sealed
	}
	if c.in.seq+1 == 0 {
		return 0, true, c.fail(alertInternalError)
	}
	inner, err := c.in.aead.Open(to[:0], c.in.next(), sealed, header)
	if err != nil {
		return 0, true, c.fail(alertBadRecordMAC)
	}
	s.r += recordHeader + size
	kind, length := unpad(inner)
	switch {
	case len(inner) > maxRecordPayload+1: // with type and padding
		err = c.fail(alertRecordOverflow)
	case kind == typeApplication && c.message.n == 0:
		n, err = c.payload(p, inner[:length], direct)
	default:
		err = c.control(kind, inner[:length])
	}
	if len(c.plain) == 0 {
		s.release()
	}
	return n, true, err
}

// checkHeader judges a record's header.
func checkHeader(header []byte, size int) (alert tls.AlertError, ok bool) {
	switch {
	case header[0] != typeApplication:
		return alertUnexpectedMessage, false
	case binary.BigEndian.Uint16(header[1:]) != recordVersion:
		return alertProtocolVersion, false
	case size > maxCiphertext:
		return alertRecordOverflow, false
	case size < 1+tagSize:
		return alertBadRecordMAC, false
	}
	return 0, true
}

// unpad finds the content type behind the content (RFC 8446 section 5.4). It is zero if there is none.
func unpad(inner []byte) (kind byte, length int) {
	for i := len(inner) - 1; i >= 0; i-- {
		if inner[i] != 0 {
			return inner[i], i
		}
	}
	return 0, 0
}

// payload hands on what was opened: into p already, or not.
func (c *records) payload(p, content []byte, direct bool) (int, error) {
	if len(content) == 0 {
		return 0, c.idle()
	}
	c.useless = 0
	if direct {
		return len(content), nil
	}
	c.plain = content
	return c.takePlain(p), nil
}

// idle counts records that bring nothing, which cost their sender as much only while they are few.
func (c *records) idle() error {
	if c.useless++; c.useless > maxUseless {
		return c.fail(alertUnexpectedMessage)
	}
	return nil
}

// control handles a record that is not payload.
func (c *records) control(kind byte, content []byte) error {
	switch {
	case kind == typeHandshake && len(content) > 0:
		if err := c.idle(); err != nil {
			return err
		}
		return c.handshake(content)
	case kind == typeAlert && c.message.n == 0:
		if len(content) != 2 {
			return c.fail(alertDecodeError)
		}
		switch alert := tls.AlertError(content[1]); alert {
		case alertCloseNotify:
			return io.EOF
		case alertUserCanceled: // close_notify follows (RFC 8446 section 6.1)
			return c.idle()
		default:
			return remoteError(alert)
		}
	}
	return c.fail(alertUnexpectedMessage)
}

// handshake handles messages after the handshake, which may come in pieces. Tickets are skipped: nobody resumes.
func (c *records) handshake(b []byte) error {
	m := &c.message
	for len(b) > 0 {
		if m.n < messageHeader {
			k := copy(m.header[m.n:], b)
			m.n, b = m.n+k, b[k:]
			if m.n < messageHeader {
				return nil
			}
			m.left = int(binary.BigEndian.Uint32(m.header[:]) & (1<<24 - 1))
			switch kind := m.header[0]; {
			case kind == messageSessionTicket && c.client && m.left > 0:
				if m.left > maxMessage {
					return c.fail(alertInternalError)
				}
			case kind == messageKeyUpdate:
				if m.left != 1 {
					return c.fail(alertDecodeError)
				}
			default:
				return c.fail(alertUnexpectedMessage)
			}
		}
		if m.header[0] == messageKeyUpdate && len(b) > 0 {
			*m = message{}
			return c.updated(b)
		}
		k := min(m.left, len(b))
		if m.left, b = m.left-k, b[k:]; m.left == 0 {
			*m = message{}
		}
	}
	return nil
}

// updated handles the body of a KeyUpdate (RFC 8446 section 4.6.3), which must end its record.
func (c *records) updated(body []byte) error {
	if len(body) != 1 {
		return c.fail(alertUnexpectedMessage)
	}
	if body[0] > 1 {
		return c.fail(alertIllegalParameter)
	}
	if err := c.in.update(); err != nil {
		_ = c.fail(alertInternalError)
		return err
	}
	if body[0] == 1 {
		c.sock.mu.Lock()
		c.asked = true
		c.sock.mu.Unlock()
	}
	return nil
}

// updateLocked tells the peer that all later records are under the next key. There must be room. After an error nothing more
// can be sealed.
func (c *records) updateLocked() error {
	c.asked = false
	c.sealLocked(typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, 0})
	err := c.out.update()
	if err != nil {
		c.ended, c.endedBy = true, fmt.Errorf("update keys: %w", err)
	}
	return c.endedBy
}

// fail tells the peer what is wrong, and returns it as an error.
func (c *records) fail(alert tls.AlertError) error {
	err := localError(alert)
	_ = c.end(levelFatal, alert, err)
	return err
}

// end sends an alert after which nothing follows.
func (c *records) end(level byte, alert tls.AlertError, why error) error {
	if err := c.sock.lockRoom(overhead+2, 0); err != nil {
		return err
	}
	if !c.ended {
		c.sealLocked(typeAlert, []byte{level, byte(alert)})
		c.ended, c.endedBy = true, why
	}
	c.sock.mu.Unlock()
	return c.sock.flush()
}

var errWriteAfterClose = errors.New("wire: write after CloseWrite")

// closeWrite sends close_notify.
func (c *records) closeWrite() error {
	return c.end(levelWarning, alertCloseNotify, errWriteAfterClose)
}

// Write seals p into records that wait for flush. p, and the byte after it where it has that capacity, are its own until it
// returns, and are then as before.
func (c *records) Write(p []byte) (int, error) {
	s := c.sock
	done := 0
	for done < len(p) {
		left := len(p) - done
		all := left + (left+maxRecordPayload-1)/maxRecordPayload*overhead
		// Room for a key update, too.
		if err := s.lockRoom(maxRecordPayload+2*overhead+messageHeader+1, all); err != nil {
			return done, err
		}
		for done < len(p) && s.roomLocked() >= maxRecordPayload+2*overhead+messageHeader+1 {
			if c.ended {
				defer s.mu.Unlock()
				return done, c.endedBy
			}
			if c.asked || c.out.seq >= c.maxSeq {
				if err := c.updateLocked(); err != nil {
					s.mu.Unlock()
					return done, err
				}
			}
			k := min(len(p)-done, maxRecordPayload)
			c.sealLocked(typeApplication, p[done:done+k])
			done += k
		}
		full := s.outLen > maxCorked
		s.mu.Unlock()
		if full {
			if err := s.flush(); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// sealLocked puts a record behind what waits to be sent, where there must be room.
func (c *records) sealLocked(kind byte, p []byte) {
	s := c.sock
	n := len(p)
	rec := s.out[s.outLen:]
	rec[0] = typeApplication
	binary.BigEndian.PutUint16(rec[1:], recordVersion)
	binary.BigEndian.PutUint16(rec[3:], uint16(n+1+tagSize))
	header, to := rec[:recordHeader], rec[recordHeader:recordHeader]
	if n < cap(p) {
		// The content type goes behind the payload for as long as that is being sealed.
		p = p[:n+1]
		saved := p[n]
		p[n] = kind
		c.out.aead.Seal(to, c.out.next(), p, header)
		p[n] = saved
	} else {
		inner := rec[recordHeader : recordHeader+n+1]
		copy(inner, p)
		inner[n] = kind
		c.out.aead.Seal(to, c.out.next(), inner, header)
	}
	s.outLen += n + overhead
}
