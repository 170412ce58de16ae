package netns

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/lab"
)

// route is one way from a client to a server, for tests of what a connection carries.
type route struct {
	name   string
	client *lab.Pod
	server *lab.Pod
}

// routes makes a client and a server of each kind: through a tunnel, out of the mesh, and into it.
func routes(w *world) []route {
	n1, n2 := w.node("node1"), w.node("node2")
	a, b := w.captured(n1, "a"), w.captured(n2, "b")
	plain := w.pod(n2, "plain")
	w.settle()
	return []route{
		{"tunnel", a, b},
		{"captured to plain", a, plain},
		{"plain to captured", plain, b},
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	w := newWorld(t)
	for _, r := range routes(w) {
		t.Run(r.name, func(t *testing.T) {
			w := w.in(t)
			w.listen(r.server, ":3306", func(c *net.TCPConn) {
				defer c.Close()
				io.WriteString(c, "welcome\n")
				line, err := bufio.NewReader(c).ReadString('\n')
				if err == nil {
					io.WriteString(c, "bye "+line)
				}
			})
			c, err := r.client.Dial(addr(r.server, false, 3306))
			w.must(err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(ioTimeout))
			in := bufio.NewReader(c)
			if line, err := in.ReadString('\n'); err != nil || line != "welcome\n" {
				t.Fatalf("greeting %q, %v", line, err)
			}
			io.WriteString(c, "joe\n")
			if line, err := in.ReadString('\n'); err != nil || line != "bye joe\n" {
				t.Errorf("answer %q, %v", line, err)
			}
			if _, err := in.ReadByte(); err != io.EOF {
				t.Errorf("after the server's end: %v, want EOF", err)
			}
		})
	}
}

func TestHalfClose(t *testing.T) {
	w := newWorld(t)
	for _, r := range routes(w) {
		t.Run(r.name+", client ends first", func(t *testing.T) {
			w := w.in(t)
			got := make(chan string, 1)
			w.listen(r.server, ":9001", func(c *net.TCPConn) {
				defer c.Close()
				all, err := io.ReadAll(c) // ends with the client's FIN
				got <- fmt.Sprintf("%s %v", all, err)
				for i := range 3 {
					fmt.Fprintf(c, "part %d\n", i)
				}
			})
			c, err := r.client.Dial(addr(r.server, false, 9001))
			w.must(err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(ioTimeout))
			io.WriteString(c, "question")
			w.must(c.CloseWrite())
			answer, err := io.ReadAll(c)
			if err != nil || string(answer) != "part 0\npart 1\npart 2\n" {
				t.Errorf("answer %q, %v", answer, err)
			}
			if s := <-got; s != "question <nil>" {
				t.Errorf("server got %q", s)
			}
		})
		t.Run(r.name+", server ends first", func(t *testing.T) {
			w := w.in(t)
			got := make(chan string, 1)
			w.listen(r.server, ":9002", func(c *net.TCPConn) {
				defer c.Close()
				c.SetDeadline(time.Now().Add(ioTimeout))
				io.WriteString(c, "all I say")
				c.CloseWrite()
				all, err := io.ReadAll(c)
				got <- fmt.Sprintf("%s %v", all, err)
			})
			c, err := r.client.Dial(addr(r.server, false, 9002))
			w.must(err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(ioTimeout))
			if all, err := io.ReadAll(c); err != nil || string(all) != "all I say" {
				t.Errorf("client got %q, %v", all, err)
			}
			io.WriteString(c, "and more from me")
			w.must(c.CloseWrite())
			if s := <-got; s != "and more from me <nil>" {
				t.Errorf("server got %q", s)
			}
		})
	}
}

func TestResetArrivesAsReset(t *testing.T) {
	w := newWorld(t)
	for _, r := range routes(w) {
		t.Run(r.name+", by the client", func(t *testing.T) {
			w := w.in(t)
			ended := make(chan error, 1)
			w.listen(r.server, ":9003", func(c *net.TCPConn) {
				defer c.Close()
				c.SetDeadline(time.Now().Add(ioTimeout))
				io.WriteString(c, "x")
				_, err := io.Copy(io.Discard, c)
				ended <- err
			})
			c, err := r.client.Dial(addr(r.server, false, 9003))
			w.must(err)
			c.SetDeadline(time.Now().Add(ioTimeout))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			c.SetLinger(0)
			c.Close()
			if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("server's read ended with %v, want connection reset", err)
			}
		})
		t.Run(r.name+", by the server", func(t *testing.T) {
			w := w.in(t)
			w.listen(r.server, ":9004", func(c *net.TCPConn) {
				c.SetDeadline(time.Now().Add(ioTimeout))
				io.ReadFull(c, make([]byte, 1))
				c.SetLinger(0)
				c.Close()
			})
			c, err := r.client.Dial(addr(r.server, false, 9004))
			w.must(err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(ioTimeout))
			io.WriteString(c, "x")
			if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("client's read ended with %v, want connection reset", err)
			}
		})
	}
}

func TestConnectionRefusedIsSeen(t *testing.T) {
	w := newWorld(t)
	for _, r := range routes(w) {
		t.Run(r.name, func(t *testing.T) {
			w := w.in(t)
			c, err := r.client.Dial(addr(r.server, false, 9999))
			if err != nil {
				return // refused at once
			}
			// The proxy has accepted for the server; the client must see an error soon, and no clean end.
			defer c.Close()
			c.SetDeadline(time.Now().Add(ioTimeout))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read ended with %v, want connection reset", err)
			}
			w.refused(r.client, addr(r.server, false, 9999))
		})
	}
}

func TestLargeTransfer(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	w := newWorld(t)
	for _, r := range routes(w) {
		t.Run(r.name, func(t *testing.T) {
			w := w.in(t)
			w.listen(r.server, ":9005", func(c *net.TCPConn) {
				defer c.Close()
				sum := sha256.New()
				if _, err := io.Copy(sum, c); err != nil {
					return
				}
				io.WriteString(c, hex.EncodeToString(sum.Sum(nil)))
			})
			c, err := r.client.Dial(addr(r.server, false, 9005))
			w.must(err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Minute))
			sum := sha256.New()
			source := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
			start := time.Now()
			n, err := io.CopyBuffer(struct{ io.Writer }{c}, io.TeeReader(source, sum), make([]byte, 256<<10))
			if err != nil || n != size {
				t.Fatalf("sent %d bytes, %v", n, err)
			}
			w.must(c.CloseWrite())
			got, err := io.ReadAll(c)
			if err != nil || string(got) != hex.EncodeToString(sum.Sum(nil)) {
				t.Errorf("server's checksum %q, %v; want %x", got, err, sum.Sum(nil))
			}
			t.Logf("%d MiB in %v", size>>20, time.Since(start).Round(time.Millisecond))
		})
	}
}

func TestManyShortConnections(t *testing.T) {
	const total = 1000
	w := newWorld(t)
	for _, r := range routes(w) {
		t.Run(r.name, func(t *testing.T) {
			w := w.in(t)
			w.listen(r.server, ":9006", echo)
			var wg sync.WaitGroup
			errs := make(chan error, total)
			for i := range total {
				wg.Go(func() {
					seen, err := call(r.client, addr(r.server, false, 9006), fmt.Sprint("number ", i))
					if err == nil && seen != r.client.IPv4.String() {
						err = fmt.Errorf("the server sees %s", seen)
					}
					if err != nil {
						errs <- err
					}
				})
			}
			wg.Wait()
			if len(errs) > 0 {
				t.Errorf("%d of %d connections failed, the first with: %v", len(errs), total, <-errs)
			}
		})
	}
}

// TestNothingInClear looks at the link: a tunnel's payload is not seen there, and the look does see what is in clear.
func TestNothingInClear(t *testing.T) {
	w := newWorld(t)
	for _, r := range routes(w) {
		t.Run(r.name, func(t *testing.T) {
			w := w.in(t)
			w.listen(r.server, ":9007", echo)
			const secret = "the-quick-brown-fox-jumps"
			look := w.sniff(r.client, secret)
			if _, err := call(r.client, addr(r.server, false, 9007), secret); err != nil {
				t.Fatal(err)
			}
			packets, found := look()
			if packets == 0 {
				t.Fatal("no packet was seen on the link")
			}
			if clear := r.name != "tunnel"; found != clear {
				t.Errorf("payload seen on the link: %v, want %v", found, clear)
			}
		})
	}
}

// sniff watches a pod's link. The function that it returns ends that, and says how many packets there were and whether any
// held the text.
func (w *world) sniff(p *lab.Pod, text string) func() (packets int, found bool) {
	w.t.Helper()
	var fd int
	w.must(p.Do(func() error {
		const allProtocols = 0x0300 // ETH_P_ALL in network byte order
		var err error
		fd, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, allProtocols)
		if err != nil {
			return err
		}
		iface, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: allProtocols, Ifindex: iface.Index})
	}))
	file := os.NewFile(uintptr(fd), "sniffer")
	w.t.Cleanup(func() { file.Close() })
	return func() (packets int, found bool) {
		buf := make([]byte, 1<<16)
		for {
			// All packets of the exchange are in the socket's queue by now.
			n, _, err := syscall.Recvfrom(fd, buf, 0)
			if err != nil {
				return packets, found
			}
			packets++
			found = found || bytes.Contains(buf[:n], []byte(text))
		}
	}
}

// TestIdleConnections leaves tunnelled connections alone until the proxies hold no goroutine for them, and then uses them,
// ends them and resets them.
func TestIdleConnections(t *testing.T) {
	const idle = 100
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	resets := make(chan error, 1)
	w.listen(server, ":8081", func(c *net.TCPConn) {
		defer c.Close()
		io.WriteString(c, "\n")
		_, err := io.Copy(io.Discard, c)
		resets <- err
	})
	w.settle()
	w.expect(client, addr(server, false, 8080), client.IPv4)
	var conns []*held
	for range idle {
		conns = append(conns, w.hold(client, addr(server, false, 8080)))
	}
	toReset := w.hold(client, addr(server, false, 8081))
	for _, p := range w.proxies {
		w.eventually("the proxy on "+p.Node.Name+" holds no goroutine for what is idle", func() error {
			if routines, _ := w.usage(p); routines > idle {
				return fmt.Errorf("%d goroutines", routines)
			}
			return nil
		})
	}
	for i, c := range conns {
		if err := c.works(); err != nil {
			t.Fatalf("connection %d after idling: %v", i, err)
		}
	}
	if err := conns[0].lastWords("the last words"); err != nil {
		t.Errorf("half-close after idling: %v", err)
	}
	toReset.SetLinger(0)
	toReset.Close()
	select {
	case err := <-resets:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("server's read ended with %v, want connection reset", err)
		}
	case <-time.After(ioTimeout):
		t.Error("the server did not hear of the reset")
	}
}

// lastWords says a text, half-closes, and wants the echo and the end.
func (c *held) lastWords(text string) error {
	c.SetDeadline(time.Now().Add(ioTimeout))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err == nil && string(answer) != text {
		err = fmt.Errorf("echo of %q is %q", text, answer)
	}
	return err
}
