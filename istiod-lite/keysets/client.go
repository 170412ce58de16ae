package keysets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/authn"
	"github.com/ambit-mesh/ambit/mesh/jwks"
)

// client asks issuers.
type client struct {
	http      *http.Client
	good, bad prometheus.Counter
}

// maxRedirects is how many times an issuer may send us elsewhere.
const maxRedirects = 5

func newClient(r prometheus.Registerer) *client {
	dialer := &net.Dialer{Control: refuse}
	c := &client{
		http: &http.Client{
			Transport: &http.Transport{
				Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, ForceAttemptHTTP2: true,
				TLSHandshakeTimeout: 5 * time.Second, MaxIdleConns: 16, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
			},
			CheckRedirect: func(to *http.Request, via []*http.Request) error {
				if len(via) > maxRedirects {
					return fmt.Errorf("more than %d redirects", maxRedirects)
				}
				if via[0].URL.Scheme == "https" && to.URL.Scheme != "https" {
					return errors.New("a redirect from https to " + to.URL.Scheme)
				}
				return nil
			},
		},
		good: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pilot_jwks_resolver_network_fetch_success_total", Help: "Key sets of issuers that were fetched.",
		}),
		bad: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pilot_jwks_resolver_network_fetch_fail_total", Help: "Key sets of issuers that could not be fetched.",
		}),
	}
	r.MustRegister(c.good, c.bad)
	return c
}

// errAddress is why an address is not asked.
var errAddress = errors.New("the address is link-local, where clouds keep credentials, or none of one host")

// metadata is where a cloud keeps credentials beside link-local addresses.
var metadata = netip.MustParseAddr("fd00:ec2::254")

// refuse keeps whoever may write policies from asking, by our hand, what only this machine may ask.
func refuse(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	a := ap.Addr().Unmap()
	if a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a.WithZone("") == metadata {
		return errAddress
	}
	return nil
}

// get fetches the keys of a source.
func (c *client) get(ctx context.Context, source authn.Source, timeout time.Duration) (*jwks.Set, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	set, err := c.set(ctx, source)
	if err != nil {
		c.bad.Inc()
		return nil, err
	}
	c.good.Inc()
	return set, nil
}

func (c *client) set(ctx context.Context, source authn.Source) (*jwks.Set, error) {
	address := source.String()
	if source.URI == "" {
		text, err := c.read(ctx, address)
		if err != nil {
			return nil, err
		}
		var metadata struct {
			URI string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(text, &metadata); err != nil || metadata.URI == "" {
			return nil, fmt.Errorf("GET %s: the issuer's metadata name no jwks_uri", address)
		}
		address = metadata.URI
	}
	text, err := c.read(ctx, address)
	if err != nil {
		return nil, err
	}
	set, problems, err := jwks.Parse(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("GET %s: the key set %w", address, err)
	case set.Len() == 0 && len(problems) > 0:
		return nil, fmt.Errorf("GET %s: no key of the set can be used: %s", address, problems[0])
	case set.Len() == 0:
		return nil, fmt.Errorf("GET %s: the key set has no key that can be used", address)
	}
	return set, nil
}

// read reads what is at an address.
func (c *client) read(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	if req.URL.Scheme != "https" && req.URL.Scheme != "http" {
		return nil, fmt.Errorf("GET %s: want http or https", address)
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	req.Header.Set("User-Agent", "istiod-lite")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: status %d", address, resp.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, jwks.MaxText+1))
	if err != nil {
		return nil, &url.Error{Op: "Get", URL: address, Err: err}
	}
	if len(text) > jwks.MaxText {
		return nil, fmt.Errorf("GET %s: more than %d bytes", address, jwks.MaxText)
	}
	return text, nil
}

// reason is an error in words that are the same each time: they go to a status. Errors of the network name a port of ours.
func reason(err error) string {
	var asked *url.Error
	if !errors.As(err, &asked) {
		return err.Error()
	}
	what := asked.Err.Error()
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case asked.Timeout():
		what = "no answer in time"
	case errors.As(err, &dns):
		what = "look up " + dns.Name + ": " + dns.Err
	case errors.As(err, &op):
		what = op.Op + ": " + op.Err.Error()
		var call *os.SyscallError
		if errors.As(op.Err, &call) {
			what = op.Op + ": " + call.Err.Error()
		}
	}
	return "GET " + asked.URL + ": " + what
}
