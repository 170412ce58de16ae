package jwt

// Failure is why a request is refused. Values are those of this package: they can be compared.
type Failure struct {
	// Status is that of the response.
	Status int
	// Text is its body, Envoy's words where it has any.
	Text string
	rank int
}

// Ranks of failures: of several, the highest is told.
const (
	rankMissing = iota
	rankIssuer
	rankBad
)

// Failures.
var (
	ErrMissing      = &Failure{401, "Jwt is missing", rankMissing}
	ErrIssuer       = &Failure{401, "Jwt issuer is not configured", rankIssuer}
	ErrAudience     = &Failure{403, "Audiences in Jwt are not allowed", rankBad}
	ErrExpired      = &Failure{401, "Jwt is expired", rankBad}
	ErrNotYet       = &Failure{401, "Jwt not yet valid", rankBad}
	ErrSignature    = &Failure{401, "Jwt verification fails", rankBad}
	ErrNoKeys       = &Failure{401, "Jwks doesn't have any valid public key", rankBad}
	ErrNoKey        = &Failure{401, "Jwks doesn't have key to match kid or alg from Jwt", rankBad}
	ErrTooLong      = &Failure{401, "Jwt is too long", rankBad}
	ErrTooMany      = &Failure{401, "The request has too many Jwts", rankBad}
	ErrFormat       = &Failure{401, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections", rankBad}
	ErrHeaderBase64 = &Failure{401, "Jwt header is an invalid Base64url encoded", rankBad}
	ErrHeaderJSON   = &Failure{401, "Jwt header is an invalid JSON", rankBad}
	ErrNoAlg        = &Failure{401, "Jwt header [alg] field is required and must be a string", rankBad}
	ErrAlg          = &Failure{401, "Jwt header [alg] is not supported", rankBad}
	ErrKid          = &Failure{401, "Jwt header [kid] field is not a string", rankBad}
	ErrCritical     = &Failure{401, "Jwt header [crit] is not supported", rankBad}
	ErrBase64       = &Failure{401, "Jwt payload is an invalid Base64url encoded", rankBad}
	ErrJSON         = &Failure{401, "Jwt payload is an invalid JSON", rankBad}
	ErrIss          = &Failure{401, "Jwt payload [iss] field is not a string", rankBad}
	ErrSub          = &Failure{401, "Jwt payload [sub] field is not a string", rankBad}
	ErrAud          = &Failure{401, "Jwt payload [aud] field is not a string or string list", rankBad}
	ErrExp          = &Failure{401, "Jwt payload [exp] field is not a positive number", rankBad}
	ErrNbf          = &Failure{401, "Jwt payload [nbf] field is not a positive number", rankBad}
)

// Challenge is the www-authenticate field of the response, for the address that the client asked for.
func (f *Failure) Challenge(uri string) string {
	out := `Bearer realm="` + uri + `"`
	if f != ErrMissing {
		out += `, error="invalid_token"`
	}
	return out
}

// worse is the failure of two that is told.
func worse(a, b *Failure) *Failure {
	if a == nil || b.rank > a.rank {
		return b
	}
	return a
}
