package wire

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// played is a connection on which what is in r comes in pieces, and which forgets what is written.
type played struct {
	net.Conn
	r     *bytes.Reader
	piece int
}

func (p *played) Read(b []byte) (int, error)  { return p.r.Read(b[:min(len(b), p.piece)]) }
func (p *played) Write(b []byte) (int, error) { return len(b), nil }
func (p *played) Close() error                { return nil }

// FuzzOpen reads what a peer sends: records with any content, that it has sealed as it should, and bytes that are none. Whatever
// comes, the payload that is read is that of a beginning of what was sent, and all buffers are given back.
//
// The input is the sizes of pieces and reads, and then steps: a kind, the length of the content in units of 64 bytes and single
// ones, and the content, of which the rest is zero. Kind 1 is raw bytes.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("\x10\x10\x17\x00\x05hello\x17\x01\x00world"))
	f.Add([]byte("\xff\x01\x16\x00\x05\x18\x00\x00\x01\x00\x17\x00\x01x"))
	f.Add([]byte("\x01\xff\x16\x00\x02\x04\x00\x16\x00\x04\x00\x02ab\x17\xff\xff"))
	f.Add([]byte("\x80\x80\x15\x00\x02\x01\x00"))
	f.Add([]byte("\x80\x80\x17\x00\x01x\x01\x00\x05\x17\x03\x03\x40\x00"))
	f.Add([]byte("\x80\x80\x00\x04\x00\x17\x00\x00\x17\x00\x00"))
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) < 2 {
			return
		}
		piece, size := int(script[0])*64+1, int(script[1])*64+1
		stream, sent := playScript(t, script[2:])
		sock := newSocket(&played{r: bytes.NewReader(stream), piece: piece})
		sock.cork(true)
		c, err := newRecords(sock, true, suiteOf(tls.TLS_AES_128_GCM_SHA256), fixedSecrets())
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		p := make([]byte, size)
		for reads := 0; ; reads++ {
			n, err := c.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				if n > 0 {
					t.Errorf("%d bytes with %v", n, err)
				}
				break
			}
			if n == 0 || reads > len(stream)+10 {
				t.Fatalf("read %d of %d bytes in %d reads of %d", len(got), len(sent), reads, size)
			}
		}
		if !bytes.HasPrefix(sent, got) {
			t.Errorf("read %d bytes that were not sent so", len(got))
		}
		c.wipe()
		sock.drop()
		if n := buffer.InUse(); n != 0 {
			t.Errorf("%d bytes of buffers are lent at the end", n)
		}
	})
}

func fixedSecrets() *secrets {
	return &secrets{client: bytes.Repeat([]byte{1}, 32), server: bytes.Repeat([]byte{2}, 32)}
}

// playScript returns what a server would send, and the payload in it.
func playScript(t *testing.T, script []byte) (stream, payload []byte) {
	const most = 1 << 19
	out := &kept{}
	sock := newSocket(out)
	c, err := newRecords(sock, false, suiteOf(tls.TLS_AES_128_GCM_SHA256), fixedSecrets())
	if err != nil {
		t.Fatal(err)
	}
	for len(script) >= 3 && len(payload) < most {
		kind, n := script[0], int(script[1])*64+int(script[2])
		content := make([]byte, n)
		script = script[3+copy(content, script[3:]):]
		if kind == 1 {
			_, err = sock.Write(content)
		} else {
			if err = sock.lockRoom(n+overhead, 0); err == nil {
				c.sealLocked(kind, content[:n:n])
				sock.mu.Unlock()
				err = sock.flush()
			}
			if inner := bytes.TrimRight(append(content, kind), "\x00"); bytes.HasSuffix(inner, []byte{typeApplication}) {
				payload = append(payload, inner[:len(inner)-1]...)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	sock.drop()
	return out.Bytes(), payload
}

// kept is a connection that keeps what is written.
type kept struct {
	net.Conn
	bytes.Buffer
}

func (k *kept) Read([]byte) (int, error)    { return 0, io.EOF }
func (k *kept) Write(b []byte) (int, error) { return k.Buffer.Write(b) }
