package nowait

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/ambit-mesh/ambit/mesh/buffer"
)

// Conn is a TCP connection that reads and writes without telling the scheduler. Unlike of other connections only one goroutine at a
// time may read, and one write.
type Conn struct {
	*net.TCPConn
	raw syscall.RawConn

	// Of who reads.
	into  []byte
	lent  int // the size of the buffer that into is to become once there is something; 0: it is the reader's
	n     int
	readE error
	read  func(fd uintptr) bool

	// Of who writes.
	from   []byte // what is left
	writeE error
	write  func(fd uintptr) bool
}

// New returns a connection over nc, which it owns.
func New(nc *net.TCPConn) (*Conn, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &Conn{TCPConn: nc, raw: raw}
	c.read, c.write = c.tryRead, c.tryWrite
	return c, nil
}

// Read is as in net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.into, c.lent = p, 0
	n, err := c.await()
	c.into = nil
	return n, err
}

// ReadLent reads into a buffer of size bytes or more of package buffer, which the caller gives back, and returns it with the number of
// bytes in it: with an error none. While nothing has come it holds no buffer.
func (c *Conn) ReadLent(size int) ([]byte, int, error) {
	c.into, c.lent = nil, size
	n, err := c.await()
	b := c.into
	c.into = nil
	if n == 0 {
		buffer.Put(b)
		b = nil
	}
	return b, n, err
}

// await reads once there is something, or the end.
func (c *Conn) await() (int, error) {
	c.n, c.readE = 0, nil
	err := c.raw.Read(c.read)
	if err == nil {
		err = c.readE
	}
	switch {
	case err == nil:
		return c.n, nil
	case err == io.EOF:
		return 0, io.EOF
	}
	return 0, c.fault("read", err)
}

// tryRead returns false, holding no buffer of its own, if there is nothing yet.
func (c *Conn) tryRead(fd uintptr) bool {
	if c.lent > 0 {
		c.into = buffer.Get(c.lent)
	}
	n, err := Read(fd, c.into)
	switch {
	case err == syscall.EAGAIN:
		if c.lent > 0 {
			buffer.Put(c.into)
			c.into = nil
		}
		return false
	case err != nil:
		c.readE = os.NewSyscallError("read", err)
	case n == 0:
		c.readE = io.EOF
	default:
		c.n = n
	}
	return true
}

// Write is as in net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	c.from, c.writeE = p, nil
	err := c.raw.Write(c.write)
	n := len(p) - len(c.from)
	c.from = nil
	if err == nil {
		err = c.writeE
	}
	if err != nil {
		err = c.fault("write", err)
	}
	return n, err
}

// tryWrite returns false if the socket takes no more for now.
func (c *Conn) tryWrite(fd uintptr) bool {
	for len(c.from) > 0 {
		n, err := Write(fd, c.from)
		switch {
		case err == syscall.EAGAIN:
			return false
		case err != nil:
			c.writeE = os.NewSyscallError("write", err)
			return true
		}
		c.from = c.from[n:]
	}
	return true
}

// fault makes an error one as package net has it.
func (c *Conn) fault(op string, err error) error {
	if e := (*net.OpError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
