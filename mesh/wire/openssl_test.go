package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestWithOpenSSL has openssl at the other end, with each suite, and asks it for new keys and is asked for them.
func TestWithOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl here")
	}
	dir := t.TempDir()
	run := func(args ...string) {
		if out, err := exec.CommandContext(t.Context(), openssl, args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", dir+"/key.pem", "-out", dir+"/cert.pem",
		"-subj", "/CN=test")
	cert, err := tls.LoadX509KeyPair(dir+"/cert.pem", dir+"/key.pem")
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range suites {
		name := tls.CipherSuiteName(suite)
		t.Run(name+", server", func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			speak := openSSL(t, openssl, "s_client", "-connect", ln.Addr().String(), "-tls1_3", "-ciphersuites", name, "-quiet", "-nocommands")
			nc, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_ = nc.SetDeadline(time.Now().Add(patience))
			c, err := Server(t.Context(), nc, func(*tls.ClientHelloInfo) (*tls.Config, error) {
				return &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			speak(c, suite, []string{"", ""})
		})
		t.Run(name+", client", func(t *testing.T) {
			port := freePort(t)
			speak := openSSL(t, openssl, "s_server", "-accept", port, "-tls1_3", "-ciphersuites", name, "-cert", dir+"/cert.pem", "-key", dir+"/key.pem",
				"-naccept", "1")
			var nc net.Conn
			for end := time.Now().Add(patience); nc == nil; {
				if nc, err = net.Dial("tcp", "127.0.0.1:"+port); err != nil {
					if time.Now().After(end) {
						t.Fatal(err)
					}
					<-time.After(10 * time.Millisecond)
				}
			}
			_ = nc.SetDeadline(time.Now().Add(patience))
			c, err := Client(t.Context(), nc, &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			// Commands of s_server: new keys for it, and for both.
			speak(c, suite, []string{"k\n", "K\n", ""})
		})
	}
}

func freePort(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// openSSL starts openssl. What it returns speaks with it over a connection: lines there and back, with commands in between,
// and many records under keys that we change.
func openSSL(t *testing.T, path string, args ...string) func(c *Conn, suite uint16, commands []string) {
	ctx, stop := context.WithTimeout(t.Context(), 2*patience)
	cmd := exec.CommandContext(ctx, path, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &lines{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait()
	})
	return func(c *Conn, suite uint16, commands []string) {
		defer func() {
			c.Abort()
			c.Release()
		}()
		if state := c.ConnectionState(); state.CipherSuite != suite {
			t.Fatalf("the suite is %s", tls.CipherSuiteName(state.CipherSuite))
		}
		own(t, c).maxSeq = 2
		secret := bytes.Clone(own(t, c).in.secret)
		for i, command := range append([]string{""}, commands...) {
			hello := fmt.Sprintf("hello %d from openssl\n", i)
			for _, line := range []string{command, hello} {
				if _, err := io.WriteString(in, line); err != nil {
					t.Fatal(err)
				}
				if line == command && line != "" { // what openssl reads at once is one command
					if err := c.WaitReadable(); err != nil {
						t.Fatal(err)
					}
				}
			}
			receive(t, c, []byte(hello))
			for j := range 5 {
				send(t, c, fmt.Appendf(nil, "hello %d.%d\n", i, j))
			}
			out.await(t, fmt.Sprintf("hello %d.4\n", i))
		}
		if changed := !bytes.Equal(secret, own(t, c).in.secret); changed != slices.Contains(commands, "K\n") {
			t.Errorf("openssl has changed its keys: %v", changed)
		}
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
	}
}

// lines are what a process has said.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) await(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		l.mu.Lock()
		text := l.text.String()
		l.mu.Unlock()
		if strings.Contains(text, want) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("openssl has not said %q:\n%s", want, text)
		}
		<-time.After(5 * time.Millisecond)
	}
}
