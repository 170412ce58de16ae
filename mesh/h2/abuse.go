package h2

import (
	"errors"
	"fmt"
	"time"
)

// Cause names, for metrics, why a peer lost its connection.
type Cause string

// Causes. All but the first five are floods: each frame by itself is allowed, so many of them are not.
const (
	CauseProtocol     Cause = "protocol_error"
	CauseFlowControl  Cause = "flow_control"
	CauseFrameSize    Cause = "frame_size"
	CauseCompression  Cause = "compression"
	CauseStreamClosed Cause = "stream_closed"

	CauseRapidReset   Cause = "rapid_reset"     // streams that the peer reset before they were answered
	CauseFaults       Cause = "faulty_streams"  // streams that this side had to reset
	CauseRefused      Cause = "refused_streams" // streams beyond the limit, after GOAWAY, or with a header list too large
	CauseHeaderBlock  Cause = "header_block"    // one header block far over the limit, compressed or not, or in endless CONTINUATION
	CauseSettings     Cause = "settings_flood"  // SETTINGS and their acknowledgements
	CausePings        Cause = "ping_flood"      // PINGs, without payload between them, and answers to none
	CauseEmptyData    Cause = "empty_data"      // DATA without payload or end
	CauseTinyData     Cause = "tiny_data"       // DATA of a few bytes that the sender could have put together
	CauseTinyWindow   Cause = "tiny_windows"    // WINDOW_UPDATE for a few bytes
	CauseEnded        Cause = "ended_streams"   // frames on streams that have ended
	CauseUnknown      Cause = "unknown_frames"  // PRIORITY, and types that we do not know
	CauseGoAway       Cause = "goaway_flood"    // GOAWAY again and again
	CauseInformation  Cause = "informational"   // responses of status 1xx
	CauseUnread       Cause = "unread_answers"  // the peer asks without end and does not read the answers
	CauseWriteStalled Cause = "write_stalled"   // the peer took nothing for WriteTimeout
)

// floodTime is the time in which allowances hold.
const floodTime = 10 * time.Second

// Sizes from which on a frame counts as tiny, in bytes.
const (
	tinyData   = 8
	tinyWindow = 256
)

// maxSettings is how many entries one SETTINGS frame may have; there are ten that anybody uses.
const maxSettings = 64

// flood is an index of allowances.
type flood uint8

const (
	floodReset flood = iota
	floodFault
	floodRefused
	floodSettings
	floodPing
	floodEmptyData
	floodTinyData
	floodTinyWindow
	floodEnded
	floodUnknown
	floodGoAway
	floodInformation
	floods
)

// allowances say how often what brings nothing may come in floodTime. They are far above what any peer that means well was
// seen to send, and low enough that what they allow costs little.
var allowances = [floods]struct {
	cause Cause
	most  int
}{
	floodReset:       {CauseRapidReset, 1_000}, // if they are more than half of all streams
	floodFault:       {CauseFaults, 1_000},
	floodRefused:     {CauseRefused, 10_000},
	floodSettings:    {CauseSettings, 100},
	floodPing:        {CausePings, 2_000},
	floodEmptyData:   {CauseEmptyData, 1_000},
	floodTinyData:    {CauseTinyData, 200_000},
	floodTinyWindow:  {CauseTinyWindow, 10_000},
	floodEnded:       {CauseEnded, 10_000},
	floodUnknown:     {CauseUnknown, 1_000},
	floodGoAway:      {CauseGoAway, 100},
	floodInformation: {CauseInformation, 1_000},
}

// meter counts what brings nothing. It is the reader's, and looks at the clock only when an allowance is used up.
type meter struct {
	counts  [floods]int
	since   [floods]time.Time
	streams int // that the peer has opened
	before  int // streams when counts[floodReset] was last zero
}

func (m *meter) init(now time.Time) {
	for i := range m.since {
		m.since[i] = now
	}
}

// count counts one, and returns a violation if there were too many in too short a time.
func (m *meter) count(f flood) error {
	m.counts[f]++
	a := &allowances[f]
	if m.counts[f] < a.most {
		return nil
	}
	now := time.Now()
	flooding := now.Sub(m.since[f]) < floodTime
	if f == floodReset {
		// Whoever opens many streams may give up some.
		flooding = flooding && 2*a.most > m.streams-m.before
		m.before = m.streams
	}
	if flooding {
		return &violation{EnhanceYourCalm, a.cause, fmt.Sprintf("%d times in less than %v: %s", a.most, floodTime, a.cause)}
	}
	m.counts[f], m.since[f] = 0, now
	return nil
}

// forgive takes back what was counted, because something useful came between.
func (m *meter) forgive(f flood) { m.counts[f] = 0 }

// Violation returns why the peer lost its connection, if err tells of such an end. Errors of Run and of streams do.
func Violation(err error) (Cause, bool) {
	var v *violation
	if errors.As(err, &v) {
		return v.cause, true
	}
	if errors.Is(err, ErrWriteStalled) {
		return CauseWriteStalled, true
	}
	return "", false
}

// violation is what a peer did against the protocol or the limits, for which the connection ends.
type violation struct {
	code   ErrCode
	cause  Cause
	reason string
}

func (v *violation) Error() string { return fmt.Sprintf("%v: %s", v.code, v.reason) }

// violated is a violation whose cause follows from the code.
func violated(code ErrCode, reason string) error {
	cause := CauseProtocol
	switch code {
	case FlowControlError:
		cause = CauseFlowControl
	case FrameSizeError:
		cause = CauseFrameSize
	case CompressionError:
		cause = CauseCompression
	case StreamClosed:
		cause = CauseStreamClosed
	}
	return &violation{code, cause, reason}
}
