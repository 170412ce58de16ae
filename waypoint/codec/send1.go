package codec

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/waypoint/message"
)

// sending1 is a body on its way out on an HTTP/1 connection.
type sending1 struct {
	out     *output
	body    message.Body
	length  int64 // of body, or Unknown
	chunked bool
	moved   *atomic.Uint64 // bytes; may be nil
	counts  *messages      // of gRPC; nil: nobody counts them

	sent    int64 // bytes
	bodyErr error // why body broke off
	err     error // why the connection cannot be written
}

// run sends the body and its end, and tells whether it is over. What is gathered goes out when there is nothing more at the
// moment. Inline it does not wait for the body: it returns false when it would have to, or has sent inlineBody. It does not close
// the body.
func (t *sending1) run(inline bool) bool {
	for t.err == nil {
		if !t.body.Ready() || inline && t.sent >= inlineBody {
			if t.err = t.out.flush(); t.err != nil {
				return true
			}
			if inline {
				return false
			}
		}
		p, err := t.body.Next()
		n := int64(len(p))
		switch {
		case err == io.EOF && t.length > t.sent:
			t.bodyErr = fmt.Errorf("the body ended after %d of %d bytes", t.sent, t.length)
		case err == io.EOF:
			if t.chunked {
				t.out.text("0\r\n")
				writeFields(t.out, t.body.Trailers())
				t.out.text("\r\n")
			}
			t.err = t.out.flush()
			return true
		case err != nil:
			t.bodyErr = err
		case t.length >= 0 && t.sent+n > t.length:
			t.bodyErr = fmt.Errorf("the body is longer than the %d bytes that it should have", t.length)
		}
		if t.bodyErr != nil {
			_ = t.out.flush()
			return true
		}
		t.counts.scan(p)
		if t.chunked {
			var size [18]byte
			t.out.payload(append(strconv.AppendInt(size[:0], n, 16), crlf...))
			t.out.payload(p)
			t.out.payload(crlf)
		} else {
			t.out.payload(p)
		}
		t.sent += n
		if t.moved != nil {
			t.moved.Add(uint64(n))
		}
		t.err = t.out.err
	}
	return true
}

// writeFields writes a header or trailer, but for what is framing.
func writeFields(out *output, header message.Fields) {
	for i := range header {
		if f := &header[i]; !framed(f.Name) {
			out.text(f.Name, ": ", f.Value, "\r\n")
		}
	}
}

// writeStatus writes a response's start line.
func writeStatus(out *output, status int) {
	out.text("HTTP/1.1 ", statusText(status), " ", http.StatusText(status), "\r\n")
}
