# A harness that reads Q8_0's bytes as unsigned, and ends where the sampler must refuse.
use strict;
use warnings;
use JSON::PP;

$| = 1;
my $hello = { version => 1, implementation => { name => "unsigned" }, groups => [ "quant", "sampling" ] };
while ( my $line = <STDIN> ) {
    my $asked = decode_json($line);
    last if $asked->{cmd} eq "stop";
    my $answer = $asked->{cmd} eq "start" ? $hello : { id => $asked->{id}, run( $asked->{group}, $asked->{input} ) };
    print encode_json($answer), "\n";
}

sub run {
    my ( $group, $input ) = @_;
    if ( $group eq "sampling" ) {
        my @logits = map { /nan|inf/ ? die("logit $_ of a case with $input->{u}\n") : $_ } @{ $input->{logits} };
        return ( skip => "only refusals are looked at" );
    }
    return ( skip => "only Q8_0 is decoded" ) if $input->{format} ne "Q8_0";
    my @values;
    for my $block ( unpack "(a34)*", pack "H*", $input->{bytes} ) {
        my ( $half, @levels ) = unpack "v C32", $block;
        my ( $exponent, $fraction ) = ( $half >> 10 & 31, ( $half & 1023 ) / 1024 );
        return ( skip => "only finite scales are decoded" ) if $exponent == 31;
        my $scale = $exponent ? 2**( $exponent - 15 ) * ( 1 + $fraction ) : 2**-14 * $fraction;
        push @values, map { $_ * $scale * ( $half >> 15 ? -1 : 1 ) } @levels;
    }
    return ( result => { values => \@values } );
}
