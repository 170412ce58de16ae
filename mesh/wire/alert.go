package wire

import (
	"crypto/tls"
	"net"
)

// Alerts (RFC 8446 section 6).
const (
	alertCloseNotify       tls.AlertError = 0
	alertUnexpectedMessage tls.AlertError = 10
	alertBadRecordMAC      tls.AlertError = 20
	alertRecordOverflow    tls.AlertError = 22
	alertIllegalParameter  tls.AlertError = 47
	alertDecodeError       tls.AlertError = 50
	alertProtocolVersion   tls.AlertError = 70
	alertInternalError     tls.AlertError = 80
	alertUserCanceled      tls.AlertError = 90

	levelWarning = 1
	levelFatal   = 2
)

// localError is what crypto/tls calls a violation that this side has found and told the peer of.
func localError(alert tls.AlertError) error { return &net.OpError{Op: "local error", Err: alert} }

// remoteError is what crypto/tls calls an alert of the peer.
func remoteError(alert tls.AlertError) error { return &net.OpError{Op: "remote error", Err: alert} }
