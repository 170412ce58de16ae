package config

import (
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// TLS is what an endpoint has to be spoken to in, and whom it must prove to be: version 1.2 or 1.3.
type TLS struct {
	// ServerName is what the endpoint is told that it is asked for (SNI); "" for nothing.
	ServerName string
	// Roots are the certificates, as PEM, that vouch for the endpoint's; "" for those that the system trusts.
	Roots string
	// Names are those of which the endpoint's certificate must have one: at least one.
	Names []TLSName
}

// TLSName is a name that a certificate may have.
type TLSName struct {
	// URI says that it is a URI; otherwise it is a DNS name, which a certificate's wildcard covers.
	URI   bool
	Value string
}

// Of reports whether a certificate has the name.
func (n TLSName) Of(c *x509.Certificate) bool {
	if n.URI {
		return slices.ContainsFunc(c.URIs, func(u *url.URL) bool { return u.String() == n.Value })
	}
	return c.VerifyHostname(n.Value) == nil
}

// Key tells apart what differs in any way.
func (t *TLS) Key() string {
	if t == nil {
		return ""
	}
	parts := []string{t.ServerName, t.Roots}
	for _, n := range t.Names {
		kind := "dns"
		if n.URI {
			kind = "uri"
		}
		parts = append(parts, kind, n.Value)
	}
	return strings.Join(parts, "\x00")
}

// Pool returns Roots as verification takes them; nil for the system's.
func (t *TLS) Pool() *x509.CertPool {
	if t.Roots == "" {
		return nil
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(t.Roots))
	return pool
}

// systemRoots is the file that stands for what the system trusts, as Envoy's users name it. It is not read.
const systemRoots = "/etc/ssl/certs/ca-certificates.crt"

const typeUpstreamTLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"

// socket reads how connections are made: in plain, nil, or by TLS.
func (d decoder) socket(a *anypb.Any, at *strict.Path) *TLS {
	if a.GetTypeUrl() != typeUpstreamTLS {
		d.unpack(a, &rawv3.RawBuffer{}, at)
		return nil
	}
	var m tlsv3.UpstreamTlsContext
	if !d.unpack(a, &m, at) {
		return nil
	}
	common := m.GetCommonTlsContext()
	out := &TLS{ServerName: m.GetSni()}
	at = at.Field("common_tls_context")
	d.versions(common.GetTlsParams(), at.Field("tls_params"))
	v, at := common.GetValidationContext(), at.Field("validation_context")
	if v == nil {
		d.add(at, "required: an endpoint that need not prove who it is could be anybody")
		return out
	}
	out.Roots = d.roots(v.GetTrustedCa(), at.Field("trusted_ca"))
	for i, n := range v.GetMatchTypedSubjectAltNames() {
		at := at.Field("match_typed_subject_alt_names").Index(i)
		name := TLSName{URI: n.GetSanType() == tlsv3.SubjectAltNameMatcher_URI, Value: n.GetMatcher().GetExact()}
		if !name.URI && n.GetSanType() != tlsv3.SubjectAltNameMatcher_DNS {
			d.add(at.Field("san_type"), "%v is not supported: DNS or URI", n.GetSanType())
		}
		if name.Value == "" {
			d.add(at.Field("matcher").Field("exact"), "required")
		}
		out.Names = append(out.Names, name)
	}
	if len(out.Names) == 0 {
		d.add(at.Field("match_typed_subject_alt_names"), "required: a certificate that is good for any name proves nothing")
	}
	return out
}

// versions reports versions of TLS that are not those which are spoken in any case.
func (d decoder) versions(p *tlsv3.TlsParameters, at *strict.Path) {
	low := []tlsv3.TlsParameters_TlsProtocol{tlsv3.TlsParameters_TLS_AUTO, tlsv3.TlsParameters_TLSv1_2}
	if !slices.Contains(low, p.GetTlsMinimumProtocolVersion()) {
		d.add(at.Field("tls_minimum_protocol_version"), "not supported: TLSv1_2")
	}
	high := []tlsv3.TlsParameters_TlsProtocol{tlsv3.TlsParameters_TLS_AUTO, tlsv3.TlsParameters_TLSv1_3}
	if !slices.Contains(high, p.GetTlsMaximumProtocolVersion()) {
		d.add(at.Field("tls_maximum_protocol_version"), "not supported: TLSv1_3")
	}
}

// roots reads whom to trust, as PEM.
func (d decoder) roots(s *corev3.DataSource, at *strict.Path) string {
	switch {
	case s.GetFilename() == systemRoots:
		return ""
	case s.GetFilename() != "":
		d.add(at.Field("filename"), "only %s, for what the system trusts: others are inline", systemRoots)
		return ""
	}
	text := s.GetInlineString()
	if text == "" {
		text = string(s.GetInlineBytes())
	}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			d.add(at, "has no certificate that can be read")
			return text
		}
		if _, err := x509.ParseCertificate(block.Bytes); block.Type == "CERTIFICATE" && err == nil {
			return text
		}
	}
}
