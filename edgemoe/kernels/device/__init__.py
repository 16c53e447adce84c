"""Operations on a device beside the processor, to the same bits; nothing here is imported unless it is asked for."""
